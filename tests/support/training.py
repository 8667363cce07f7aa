"""Batches of drawn crops, and the plain PyTorch loop that training is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from pipelines.train import samples, schedule
from pipelines.train.batch import Batch
from pipelines.train.checkpoints import trained_parameters
from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import ADAM_BETAS, ADAM_EPS
from pipelines.train.epoch_order import Cursor
from pipelines.train.phases.base import Phase, codec_config
from tests.support.drawn import draw


class Plain(NamedTuple):
    """What a plain loop finds at each step, and what it ends with."""

    losses: list[float]
    grad_norms: list[float]
    module: nn.Module


def drawn_batches(steps: int, batch: int, side: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
    """Draw the crops of some steps, of which a worker gets its part; no crop is seen twice."""
    made = []
    for step in range(steps):
        rows = range(rank, batch, world_size)
        numbers = [step * batch + row for row in rows]
        pixels = np.stack([draw(side, side, seed=number) for number in numbers])
        weight = np.ones(len(numbers), np.float32)
        made.append(Batch(0, [f"crop-{n}" for n in numbers], pixels, weight, batch, Cursor(0, step + 1), 0))
    return made


def plain_loop(config: TrainConfig, phase: Phase, batches: Iterable[Batch]) -> Plain:
    """Train in one process, one batch a step, with torch's own Adam and clipping."""
    module = phase.module(config, torch.device("cpu"), None)
    trained = trained_parameters(module)
    optimizer = torch.optim.Adam([{"params": [p], "name": name} for name, p in trained], betas=ADAM_BETAS, eps=ADAM_EPS)
    found, seen = Plain([], [], module), 0
    stretches: Sequence[schedule.Stretch] = phase.stretches(config)
    for batch in batches:
        place = schedule.place_at(config, stretches, seen)
        sample = samples.draw(batch, config.seed, config.crop, codec_config(config).transform, torch.device("cpu"))
        terms = module(sample, place.stretch.name, place.share(seen))
        loss = (terms[:, 0] * sample.w_B).sum() / sample.w_B.sum()
        seen += batch.real_rows
        for group in optimizer.param_groups:
            peak = place.stretch.peaks.get(phase.group(group["name"]), 0.0)
            group["lr"] = peak * schedule.lr_at(config, place.share(seen))
        optimizer.zero_grad()
        loss.backward()
        found.grad_norms.append(float(nn.utils.clip_grad_norm_([p for _, p in trained], config.gradient_clip)))
        optimizer.step()
        found.losses.append(float(loss.detach()))
    return found
