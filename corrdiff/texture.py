"""Texture of a picture: energies of the bands of a Laplacian pyramid, over small blocks. No weights are needed.

Shapes: x_BCHW pictures in [-1, 1]; bands and blocks are of the mean over the channels, [B, H, W].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
"""Texture is compared on blocks of 8x8 samples of a band."""

BANDS = 2
"""Bands that are compared, the finest first."""

VARIANCE_FLOOR = (2 / 255) ** 2
"""One grey level: texture below it is not seen, and its logarithm must not weigh."""


def texture_error(x_0_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Compute the mean absolute log ratio of local band energies to the original's, [B]; 0 is the same everywhere."""
    parts = [
        torch.log((block_mean(b * b) + VARIANCE_FLOOR) / (block_mean(a * a) + VARIANCE_FLOOR)).abs().mean((-2, -1))
        for a, b in zip(bands(x_0_BCHW), bands(x_BCHW), strict=True)
    ]
    return torch.stack(parts).mean(0)


def high_frequency_energy(x_BCHW: Tensor) -> Tensor:
    """Compute the mean square of the finest band, [B]."""
    return bands(x_BCHW)[0].square().mean((-2, -1))


def bands(x_BCHW: Tensor) -> list[Tensor]:
    """Make a Laplacian pyramid of the channel mean, finest band first: [B, H, W], then half the size."""
    low = x_BCHW.float().mean(1)
    pyramid: list[Tensor] = []
    for i in range(BANDS):
        if i > 0:
            low = pool(low, 2)
        smooth = _smooth(_smooth(low, 1), 2)
        pyramid.append(low - smooth)
        low = smooth
    return pyramid


def _smooth(x_BHW: Tensor, axis: int) -> Tensor:
    """Apply the kernel (1, 2, 1) / 4 along an axis, edge values repeated."""
    size = x_BHW.shape[axis]
    before = torch.cat([x_BHW.narrow(axis, 0, 1), x_BHW.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([x_BHW.narrow(axis, 1, size - 1), x_BHW.narrow(axis, size - 1, 1)], axis)
    return before.add_(after).mul_(0.25).add_(x_BHW, alpha=0.5)


def block_mean(x_BHW: Tensor) -> Tensor:
    """Average over the blocks of a band."""
    return pool(x_BHW, BLOCK)


def pool(x_BCHW: Tensor, side: int) -> Tensor:
    """Average over squares; those at the lower and right edge may be cut."""
    height, width = x_BCHW.shape[-2:]
    if side < 32 or height % side or width % side:
        return F.avg_pool2d(x_BCHW, side, ceil_mode=True)
    squares = x_BCHW.reshape(*x_BCHW.shape[:-2], height // side, side, width // side, side)
    return squares.mean((-3, -1))  # the same, several times faster for large squares
