"""Noise schedule and DDIM: pure functions.

Shapes: x_BCHW pictures in [-1, 1]; t_B continuous time in [0, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from corrdiff.config import T_START

ELSEWHERE_SHARE = 0.25
"""Share of the training times that are drawn from all of (0, 1): the uncorrected process starts from noise."""

_COSINE_OFFSET = 0.008
"""s of the cosine schedule (arXiv 2102.09672, equation 17)."""


def alpha_bar(t: Tensor) -> Tensor:
    """Give the share of signal variance in x_t, 1 at t = 0 and 0 at t = 1: the cosine schedule (arXiv 2102.09672)."""
    angle = (t + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * (math.pi / 2)
    start = math.cos(_COSINE_OFFSET / (1 + _COSINE_OFFSET) * math.pi / 2) ** 2
    return (torch.cos(angle) ** 2 / start).clamp(0.0, 1.0)


def training_time(u: Tensor) -> Tensor:
    """Make a time to train at of a number that is uniform in [0, 1): where decoding asks the score network, (0,
    T_START), but for a share of the times elsewhere."""
    used = 1 - ELSEWHERE_SHARE
    return torch.where(u < used, u / used * T_START, (u - used) / ELSEWHERE_SHARE)


def add_noise(x_0_BCHW: Tensor, eps_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """Diffuse x_0 to x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps."""
    a_B111 = alpha_bar(t_B)[:, None, None, None]
    return a_B111.sqrt() * x_0_BCHW + (1 - a_B111).sqrt() * eps_BCHW


def sampling_times(steps: int, start: float) -> list[float]:
    """List the times of the S network evaluations, `start` first, then the 0 at which the picture is clean."""
    return [start * ((steps - i) / steps) for i in range(steps)] + [0.0]


def ddim_step(x_t_BCHW: Tensor, x_0_BCHW: Tensor, t: float, t_next: float) -> Tensor:
    """Take one step of DDIM with eta = 0 (arXiv 2010.02502, equation 12), given the (corrected) estimate of x_0."""
    a, a_next = (float(alpha_bar(torch.tensor(v, dtype=torch.float64))) for v in (t, t_next))
    # sqrt(a_next) x_0 + sqrt(1 - a_next) eps, with eps = (x_t - sqrt(a) x_0) / sqrt(1 - a)
    kept = math.sqrt((1 - a_next) / (1 - a))
    return (x_t_BCHW * kept).add_(x_0_BCHW, alpha=math.sqrt(a_next) - math.sqrt(a) * kept)
