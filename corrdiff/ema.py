"""Exponential moving average of weights, with a half-life in pictures."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

RAMP_UP = 0.1
"""The half-life is at most this share of the pictures seen, so that early averages forget the start."""


class Ema:
    """Averages of weights in float32, by name."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], halflife_crops: float) -> None:
        self.halflife_crops = halflife_crops
        self.average = {name: p.detach().float().clone() for name, p in parameters}

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, Tensor]], batch_crops: int, crops_seen: int) -> None:
        """Move towards `parameters` after a batch; `crops_seen` counts that batch too."""
        halflife = max(min(self.halflife_crops, crops_seen * RAMP_UP), 1e-8)
        rate = 1 - 0.5 ** (batch_crops / halflife)
        for name, p in parameters:
            self.average[name].lerp_(p.detach().float(), rate)
