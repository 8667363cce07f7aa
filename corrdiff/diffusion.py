"""Noise schedule, DDIM and the noise that the format defines: pure functions.

Shapes: x_BCHW pictures in [-1, 1]; t_B continuous time in [0, 1].
"""

from __future__ import annotations

import functools
import hashlib
import math
import statistics

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

T_START = 0.4
"""Time at which the corrected reverse process starts, from D's picture diffused to it. At noisier times the estimate
may be D's as well: factors of 1 there cost neither PSNR nor texture, and the score network is not asked."""

T_MAX = 0.98
"""Time at which the uncorrected reverse process starts, from noise: alpha_bar is about 0.001."""

_COSINE_OFFSET = 0.008
"""s of the cosine schedule (arXiv 2102.09672, equation 17)."""

_NOISE_KEY = (0x43525244, 0x49464631)
"""Philox key of format version 1."""

_NOISE_TABLE_SHA256 = "1ea009ce409dac97d6bd609266910f809c5fb912f78e16bd89145b08174d6fc5"


def alpha_bar(t: Tensor) -> Tensor:
    """Cosine schedule (arXiv 2102.09672): the share of signal variance in x_t, 1 at t = 0 and 0 at t = 1."""
    angle = (t + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * (math.pi / 2)
    start = math.cos(_COSINE_OFFSET / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
    return (torch.cos(angle) ** 2 / start).clamp(0.0, 1.0)


def add_noise(x_0_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps."""
    a_B111 = alpha_bar(t_B)[:, None, None, None]
    return a_B111.sqrt() * x_0_BCHW + (1 - a_B111).sqrt() * eps_BCHW


def sampling_times(steps: int, start: float) -> list[float]:
    """Times of the S network evaluations, `start` first, then the 0 at which the picture is clean."""
    return [start * ((steps - i) / steps) for i in range(steps)] + [0.0]


def ddim_step(x_t_BCHW: Tensor, x_0_BCHW: Tensor, t: float, t_next: float) -> Tensor:
    """One step of DDIM with eta = 0 (arXiv 2010.02502, equation 12), given the (corrected) estimate of x_0."""
    a, a_next = (float(alpha_bar(torch.tensor(v, dtype=torch.float64))) for v in (t, t_next))
    # sqrt(a_next) x_0 + sqrt(1 - a_next) eps, with eps = (x_t - sqrt(a) x_0) / sqrt(1 - a)
    kept = math.sqrt((1 - a_next) / (1 - a))
    return (x_t_BCHW * kept).add_(x_0_BCHW, alpha=math.sqrt(a_next) - math.sqrt(a) * kept)


def philox4x32(counters: npt.NDArray[np.uint32], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Philox 4x32-10 (Salmon et al., SC 2011): counters [..., 4] -> random words [..., 4]. Integers only."""
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
    """Normal quantiles at the middles of 65,536 equal parts, rounded to 1/4096.

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
    """The noise from which decoding starts, [3, height, width], for the window at (top, left) of the picture.

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
