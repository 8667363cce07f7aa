"""Pictures as the correction meets them: an original, an estimate of the score network, D's."""

from __future__ import annotations

import torch
from torch import Tensor

from corrdiff.correction import Parts, split


def three_pictures(height: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """An original, a rough estimate of it and a smooth one; how good each is varies from place to place."""
    generator = torch.Generator().manual_seed(1000 * height + width)

    def noise(strength: float) -> Tensor:
        amplitude = torch.rand(batch, 1, height, width, generator=generator)
        return strength * amplitude * torch.randn(batch, 3, height, width, generator=generator)

    x_0 = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
    return x_0, x_0 + noise(0.4), 0.7 * x_0 + noise(0.4)


def parts_of(xhat0: Tensor, d: Tensor, planes: int = 2) -> Parts:
    """As the codec makes them: of the padded picture, cropped."""
    height, width = d.shape[2:]
    pad = (0, -width % 64, 0, -height % 64)
    padded = split(*(torch.nn.functional.pad(x, pad, mode="replicate") for x in (xhat0, d)), planes)
    return padded.crop(slice(height), slice(width))
