"""The loss terms of both phases. The perceptual network is injected.

Shapes: x_BCHW pictures in [-1, 1]; per-picture values [B].
"""

from __future__ import annotations

import torch
from torch import Tensor

from corrdiff.perceptual import PerceptualLoss


def squared_error(x_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Compute the mean squared error of each picture, [B]."""
    return (x_BCHW.float() - target_BCHW).square().flatten(1).mean(1)


def time_weight(t_B: Tensor) -> Tensor:
    """Give v(t) = 1: CDC's min(SNR, 5) has no weight for the noisy times, where sampling in a few steps starts."""
    return torch.ones_like(t_B)


def perceptual_or_zero(perceptual: PerceptualLoss | None, x_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
    """Compute distances [B], zero where there is no perceptual network (its weight is 0 then too)."""
    if perceptual is None:
        return torch.zeros(len(x_BCHW), device=x_BCHW.device)
    return perceptual(x_BCHW, target_BCHW)
