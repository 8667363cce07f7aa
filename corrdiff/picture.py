"""What a picture is to everything here. It needs NumPy alone, so that pictures can be named where torch is not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""RGB, [H, W, 3]."""
