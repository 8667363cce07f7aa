"""The noise from which decoding starts, as version 1 of the file format defines it: the same on every machine."""

from __future__ import annotations

import functools
import hashlib
import statistics

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_NOISE_KEY = (0x43525244, 0x49464631)
"""Philox key of format version 1."""

_NOISE_TABLE_SHA256 = "1ea009ce409dac97d6bd609266910f809c5fb912f78e16bd89145b08174d6fc5"


def philox4x32(counters: npt.NDArray[np.uint32], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Run Philox 4x32-10 (Salmon et al., SC 2011), integers only: counters [..., 4] -> random words [..., 4]."""
    c0, c1, c2, c3 = (counters[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


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
    first, last = left // 8, (left + width - 1) // 8
    x = np.arange(first, last + 1, dtype=np.uint32)
    y = np.arange(top, top + height, dtype=np.uint32)
    counters = np.zeros((3, height, len(x), 4), dtype=np.uint32)
    counters[..., 0] = x
    counters[..., 1] = y[:, None]
    counters[..., 2] = np.arange(3, dtype=np.uint32)[:, None, None]
    words = philox4x32(counters, _NOISE_KEY).astype("<u4")
    lanes = words.view("<u2").reshape(3, height, -1)
    offset = left - 8 * first
    return torch.from_numpy(_normal_table()[lanes[:, :, offset : offset + width]])
