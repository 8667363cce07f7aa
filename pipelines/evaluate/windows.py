"""The parts of pictures that the page shows: which decoded pictures, and the middle of each, kept with every pixel.

OUT/_windows/STEM-original.webp
OUT/_windows/STEM-CURVE-RATE.webp   of a picture and system (STEM), what was decoded near a rate
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from corrdiff.picture import Picture
from pipelines.files import storage

WINDOWS = "_windows"

RATES = (0.1, 0.2, 0.4, 0.8)
"""Rates in bpp at which pictures are looked at: of each curve the point that is nearest, by at most RATE_FACTOR."""
RATE_FACTOR = 1.35

WINDOW = 448
"""Side of what is looked at in pixels, from the picture's middle: every pixel is kept."""


def nearest_rows(rows: Sequence[dict[str, Any]], rate: float) -> dict[str, dict[str, Any]]:
    """Choose of each of a system's curves the row whose bpp is nearest to `rate`, where one is near enough."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        curve = curve_of(row)
        if curve is None or _distance(row, rate) > math.log(RATE_FACTOR):
            continue
        if curve not in found or _distance(row, rate) < _distance(found[curve], rate):
            found[curve] = row
    return found


def _distance(row: dict[str, Any], rate: float) -> float:
    return abs(math.log(row["bpp"] / rate))


def curve_of(row: dict[str, Any]) -> str | None:
    """Say to which of its system's curves a row belongs; one of another number of steps belongs to none."""
    if row["decoding"] not in ("corrected", "privileged", "uncorrected"):
        return "anchor"
    if not row["usual_steps"]:
        return None
    return f"fidelity-{row['fidelity']:g}" if row["decoding"] == "corrected" else str(row["decoding"])


def keep_windows(out: str, stem: str, original: Picture, decoded: Sequence[tuple[dict[str, Any], Picture]]) -> None:
    """Write the windows of one picture through one system: the original's, and of rows and what was decoded those
    nearest to each rate."""
    pictures = {id(row): picture for row, picture in decoded}
    for rate in RATES:
        for curve, row in nearest_rows([row for row, _ in decoded], rate).items():
            storage.write_bytes(decoded_uri(out, stem, curve, rate), _lossless(_middle(pictures[id(row)])))
    storage.write_bytes(original_uri(out, stem), _lossless(_middle(original)))


def original_uri(out: str, stem: str) -> str:
    """Where the window of an original is."""
    return storage.join(out, WINDOWS, f"{stem}-original.webp")


def decoded_uri(out: str, stem: str, curve: str, rate: float) -> str:
    """Where the window of a decoded picture is."""
    return storage.join(out, WINDOWS, f"{stem}-{curve}-{rate:g}.webp")


def _middle(picture: Picture) -> Picture:
    """The middle of a picture, at most WINDOW pixels a side."""
    top, left = (max(0, (side - WINDOW) // 2) for side in picture.shape[:2])
    return picture[top : top + WINDOW, left : left + WINDOW]


def _lossless(picture: Picture) -> bytes:
    """A WebP that keeps every pixel."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "WEBP", lossless=True, quality=70, method=4)
    return buffer.getvalue()
