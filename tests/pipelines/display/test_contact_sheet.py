from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.display.contact_sheet import Panel, side_by_side


def test_side_by_side_shows_every_picture() -> None:
    red, blue = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 40, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    data = side_by_side([[Panel("a", red), Panel("b", blue)], [Panel("c", red)]])
    sheet = np.asarray(Image.open(io.BytesIO(data)))
    assert (sheet == (255, 0, 0)).all(-1).sum() == 2 * 600
    assert (sheet == (0, 0, 255)).all(-1).sum() == 800
