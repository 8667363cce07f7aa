"""What a step gets: a batch of crops, as the reader gives it and a sample is drawn from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.train.epoch_order import Cursor


class Batch(NamedTuple):
    """The crops that one worker gets for one step."""

    epoch: int
    keys: list[str]
    pixels_BHWC: npt.NDArray[np.uint8]
    weight_B: npt.NDArray[np.float32]
    """1 for a crop, 0 for padding."""
    real_rows: int
    """Crops in this step over all workers."""
    next: Cursor
    """The step after this one."""
    read_bytes: int
    """Bytes of this worker's crops as they are stored."""
