"""The loss terms of all phases. The perceptual network is injected.

Shapes: x_BCHW pictures in [-1, 1]; per-picture values [B].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def looks_real(logits_Bhw: Tensor) -> Tensor:
    """Give what is lost on pictures that are to be called real, [B]: of those that are, by the discriminator; of those
    that are made, by who makes them (the non-saturating loss of arXiv 1406.2661)."""
    return F.softplus(-logits_Bhw).flatten(1).mean(1)


def looks_made(logits_Bhw: Tensor) -> Tensor:
    """Give what a discriminator loses on pictures that are made, [B]."""
    return F.softplus(logits_Bhw).flatten(1).mean(1)
