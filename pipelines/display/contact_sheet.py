"""A contact sheet: labelled pictures in rows, where people would rather look than read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from corrdiff.picture import Picture

LABEL_PX = 22
GAP_PX = 4
_BACKGROUND = (255, 255, 255)
_INK = (20, 20, 20)


class Panel(NamedTuple):
    """One picture with a line under it."""

    label: str
    picture: Picture


def side_by_side(rows: Sequence[Sequence[Panel]]) -> bytes:
    """Draw rows of labelled pictures of like size -> the bytes of a PNG."""
    width = max(sum(p.picture.shape[1] + GAP_PX for p in row) for row in rows) + GAP_PX
    height = sum(max(p.picture.shape[0] for p in row) + LABEL_PX + GAP_PX for row in rows) + GAP_PX
    sheet = Image.new("RGB", (width, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    y = GAP_PX
    for row in rows:
        x = GAP_PX
        tallest = max(p.picture.shape[0] for p in row)
        for panel in row:
            sheet.paste(Image.fromarray(np.ascontiguousarray(panel.picture)), (x, y))
            draw.text((x + 2, y + tallest + 2), panel.label, fill=_INK, font=font)
            x += panel.picture.shape[1] + GAP_PX
        y += tallest + LABEL_PX + GAP_PX
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
