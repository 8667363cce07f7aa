"""The noise from which decoding starts, as version 1 of the file format defines it: the same on every machine."""

from __future__ import annotations

import functools
import hashlib
import statistics

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrdiff.compiled import compiled

_NOISE_KEY = (0x43525244, 0x49464631)
"""Philox key of format version 1."""

_NOISE_TABLE_SHA256 = "1ea009ce409dac97d6bd609266910f809c5fb912f78e16bd89145b08174d6fc5"


@functools.cache
def _normal_table() -> npt.NDArray[np.float32]:
    """Make the table of normal quantiles at the middles of 65,536 equal parts, rounded to 1/4096.

    The rounding leaves room for the last bits in which mathematical libraries differ; the hash proves that it did.
    """
    inverse = statistics.NormalDist().inv_cdf
    half = [round(4096 * inverse((i + 0.5) / 65536)) for i in range(32768)]
    table = np.array(half + [-v for v in reversed(half)], dtype="<i2")
    digest = hashlib.sha256(table.tobytes()).hexdigest()
    if digest != _NOISE_TABLE_SHA256:
        raise AssertionError(f"the format's noise table came out differently on this machine ({digest})")
    return (table.astype(np.float32) / 4096).astype(np.float32)


def format_noise(height: int, width: int, top: int = 0, left: int = 0) -> Tensor:
    """Make the noise from which decoding starts, [3, height, width], for the window at (top, left) of the picture.

    Bit-equal everywhere: Philox on integer counters (x // 8, y, channel, 0); the four words give eight 16-bit
    numbers, low half first, for the pixels 8 * (x // 8) + 0..7; each is looked up in a table of normal quantiles.
    """
    noise = np.empty((3, height, width), np.float32)
    _fill(noise, top, left, _normal_table())
    return torch.from_numpy(noise)


# The rest is compiled. Whole numbers are uint64 throughout, since numba makes floats of a mixture.
_LOW, _16, _32 = np.uint64(0xFFFFFFFF), np.uint64(16), np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_STEP_0, _STEP_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_KEY_0, _KEY_1 = np.uint64(_NOISE_KEY[0]), np.uint64(_NOISE_KEY[1])


def _philox(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Run Philox 4x32-10 (Salmon et al., SC 2011), integers only: a counter and a key -> four random words."""
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ k0, p1 & _LOW, (p0 >> _32) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _STEP_0) & _LOW, (k1 + _STEP_1) & _LOW
    return c0, c1, c2, c3


philox4x32 = compiled(_philox)


def _fill_loop(noise, top, left, table):  # type: ignore[no-untyped-def]
    """Fill [3, height, width], eight pixels of a row at a time."""
    width = noise.shape[2]
    for channel in range(3):
        for row in range(noise.shape[1]):
            for eight in range(left // 8, (left + width - 1) // 8 + 1):
                words = philox4x32(
                    np.uint64(eight), np.uint64(top + row), np.uint64(channel), np.uint64(0), _KEY_0, _KEY_1
                )
                for lane in range(8):
                    x = 8 * eight + lane - left
                    if 0 <= x < width:
                        word = words[lane // 2]
                        noise[channel, row, x] = table[(word >> _16 if lane % 2 else word) & np.uint64(0xFFFF)]


_fill = compiled(_fill_loop)
