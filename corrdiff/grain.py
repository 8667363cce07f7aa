"""Energy at the spatial periods where networks that upsample by two leave a lattice. No weights are needed.

Shapes: luma_HW the mean over the channels, in grey levels; spectra are of the frequencies 0 to 1/2, [BLOCK // 2 + 1].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from corrdiff.picture import Picture

Floats = npt.NDArray[np.float64]

PERIODS = (4, 8, 16)
"""Pixels after which a lattice repeats itself."""

BLOCK, STEP = 128, 64
"""Spectra are of blocks of 128x128 pixels that overlap by half; all PERIODS are whole numbers of waves in a block."""

MIN_SIDE = BLOCK + STEP
"""In fewer than two by two blocks chance decides."""

BESIDE = (-3, -2, 2, 3)
"""The frequencies that one is compared with, in waves a block; through a Hann window a lattice reaches but the next."""

ROUNDING = 1 / 12
"""The variance of rounding to grey levels: energy below it says nothing."""

WINDOW: Floats = np.hanning(BLOCK + 1)[:-1]


def ratio(original: Picture, picture: Picture) -> float | None:
    """Compute how far the energy at PERIODS stands out, over how far the original's does.

    1 is as the original; more is a lattice, less is one of the original's that was lost. It is None where a side is
    under MIN_SIDE.
    """
    if min(original.shape[:2]) < MIN_SIDE:
        return None
    return float(np.exp(_standing_out(picture) - _standing_out(original)))


def _standing_out(picture: Picture) -> float:
    """Compute the mean logarithm, over PERIODS and both directions, of a frequency's energy over its neighbours'.

    Neighbours are averaged as logarithms: what falls evenly with the frequency, as after a blur, cancels.
    """
    luma_HW = picture.mean(2, dtype=np.float64)
    found: list[float] = []
    for spectrum in (_spectrum(luma_HW), _spectrum(luma_HW.T)):
        level = np.log(spectrum + ROUNDING)
        found += [level[BLOCK // p] - np.mean([level[BLOCK // p + b] for b in BESIDE]) for p in PERIODS]
    return float(np.mean(found))


def _spectrum(luma_HW: Floats) -> Floats:
    """Average over the blocks the power at each horizontal frequency and vertical frequency 0; white noise has its
    variance everywhere."""
    lines = sliding_window_view(luma_HW, BLOCK, axis=0)[::STEP] @ WINDOW  # a block's rows, added up: [rows, W]
    blocks = sliding_window_view(lines, BLOCK, axis=1)[:, ::STEP] * WINDOW
    power: Floats = (np.abs(np.fft.rfft(blocks)) ** 2).mean((0, 1)) / (WINDOW @ WINDOW) ** 2
    return power
