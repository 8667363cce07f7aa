"""What a picture is to everything here. It needs NumPy alone, so that pictures can be named where torch is not."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
"""RGB, [H, W, 3]."""


class Box(NamedTuple):
    """A region of a picture, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def lies_in(self, width: int, height: int) -> bool:
        """Say whether it is a region of a picture of that size."""
        across = 0 <= self.x < self.x + self.width <= width
        return across and 0 <= self.y < self.y + self.height <= height
