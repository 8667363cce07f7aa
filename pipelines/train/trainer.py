"""One phase on one worker: DeepSpeed's engine, the weight average, the schedules, one step. Knows nothing of Ray."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from corrdiff import heap, perceptual
from corrdiff.ema import Ema
from corrdiff.errors import JobError, UsageError
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.networks.layers import recompute_blocks
from corrdiff.networks.model import CorrDiffModel
from corrdiff.perceptual import PerceptualLoss
from pipelines.train import checkpoints, deepspeed_private, samples
from pipelines.train.ahead import Drawer, Drawn
from pipelines.train.batch import Batch
from pipelines.train.checkpoints import Restored, TrainProgress
from pipelines.train.config import TrainConfig
from pipelines.train.crop_costs import activation_bytes_per_crop, flops_per_crop
from pipelines.train.deepspeed_config import choose_stage, deepspeed_config, recomputes_activations
from pipelines.train.epoch_order import Cursor
from pipelines.train.phases.base import FirstCrops, Phase, codec_config
from pipelines.train.schedule import Place, lr_at, place_at

EMA_HALFLIFE_SHARE = 0.03
"""Half-life of the weight average, as a share of the run."""


class Said(NamedTuple):
    """What a worker says with a step; all learn with the loss what any of them has said."""

    leaving: bool = False
    """Its machine is about to go away."""
    checkpoint_late: bool = False
    """By its clock a checkpoint is due."""
    validation_late: bool = False
    """By its clock a validation is due."""


NOTHING = Said()


class StepResult(NamedTuple):
    """One optimizer step, over all workers."""

    terms: list[float]
    """Means over the real crops of the batch, in the phase's order of terms."""
    grad_norm: float
    lr: float
    """The largest of the groups' learning rates."""
    said: Said
    """By some worker."""


class Trainer:
    """A phase on one worker of an initialised process group."""

    def __init__(
        self, config: TrainConfig, phase: Phase, device: torch.device, restored: Restored | None,
        first_crops: FirstCrops | None = None,
    ) -> None:  # fmt: skip
        self.config, self.phase, self.device = config, phase, device
        self.progress = restored.progress if restored else TrainProgress(0, 0, Cursor(0, 0))
        module = phase.module(config, device, _perceptual(config, device), None if restored else first_crops)
        module.to(device)  # pictures are channels_last; DeepSpeed wants the weights themselves contiguous
        self.transform = codec_config(config).transform
        self._drawer = Drawer(config.seed, config.crop, self.transform, device)
        trained = checkpoints.trained_parameters(module)
        if restored:
            with torch.no_grad():
                for name, p in trained:
                    p.copy_(restored.tensors["weight"][name])
        self.ema = Ema(trained, EMA_HALFLIFE_SHARE * config.crops_total)
        if restored:
            self.ema.average = {name: restored.tensors["ema"][name].to(device) for name, _ in trained}
        if device.type == "cpu":
            heap.keep_freed_memory()
        parameters = sum(p.numel() for _, p in trained)
        memory_bytes = _least(_memory_bytes(device), device)
        self.zero_stage = choose_stage(config, parameters, dist.get_world_size(), memory_bytes)
        self.recomputes = self._recomputes(module, memory_bytes)
        if self.recomputes:
            recompute_blocks(module)
        # Only the first worker's counts are used, and counting takes a while.
        counted = phase.stretches(config) if dist.get_rank() == 0 else ()
        self._flops = {s.name: flops_per_crop(module, self.transform, config.crop, s.name, device) for s in counted}
        self.engine = self._engine(module, trained)
        if restored:
            checkpoints.restore_moments(self.engine, restored)
        elif self.zero_stage > 0:
            deepspeed_private.begin_moments(self.engine, checkpoints.MOMENTS, torch.tensor(0.0))

    def _engine(self, module: nn.Module, trained: list[tuple[str, nn.Parameter]]) -> Any:
        """Wrap the module; its weights must be those to begin with. Adam has a group of parameters for each of the
        phase's."""
        import deepspeed

        if self.device.type == "cpu":
            deepspeed_private.use_plain_gloo()
        settings = deepspeed_config(self.config, dist.get_world_size(), self.zero_stage)
        members: dict[str, list[nn.Parameter]] = {}
        for name, p in trained:
            members.setdefault(self.phase.group(name), []).append(p)
        groups = [{"group": group, "params": parameters} for group, parameters in members.items()]
        engine, *_ = deepspeed.initialize(model=module, model_parameters=groups, config=settings)
        return engine

    def _recomputes(self, module: nn.Module, memory_bytes: int) -> bool:
        """Decide, the same on all workers, whether activations are computed again on the way back; collective."""
        config, most = self.config, 0.0
        if config.activation_checkpointing is None and dist.get_rank() == 0:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                most = max(
                    activation_bytes_per_crop(module, self.transform, config.crop, stretch.name, self.device)
                    for stretch in self.phase.stretches(config)
                    if stretch.share > 0
                )
        counted = torch.tensor(most, dtype=torch.float64, device=self.device)
        dist.broadcast(counted, 0)
        return recomputes_activations(config, float(counted), dist.get_world_size(), memory_bytes)

    @property
    def place(self) -> Place:
        """Where the next step is in the run."""
        return place_at(self.config, self.phase.stretches(self.config), self.progress.crops_seen)

    @property
    def flops_per_crop(self) -> float:
        """Operations of the next step for each of its crops; known to the first worker alone."""
        return self._flops.get(self.place.stretch.name, 0.0)

    def draw(self, batch: Batch, crops_seen: int) -> Drawn:
        """Draw the sample of a step that begins after `crops_seen`."""
        place = place_at(self.config, self.phase.stretches(self.config), crops_seen)
        return self._drawer.draw(batch, place.stretch.noise)

    def step(self, drawn: Drawn, says: Said = NOTHING) -> StepResult:
        """Forward, backward and update on this worker's part of a batch.

        `says` is what this worker says; the result has what any of them has said.

        Raises `JobError` on every worker, before the update, where a loss term is not finite.
        """
        config, world_size = self.config, dist.get_world_size()
        batch = drawn.batch
        before, seen = self.progress.crops_seen, self.progress.crops_seen + batch.real_rows
        place = self.place
        peaks, lr = place.stretch.peaks, lr_at(config, place.share(seen))
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * peaks.get(group["group"], 0.0)
        terms = len(self.phase.terms)
        totals = torch.zeros(terms + len(says), device=self.device)
        for i, word in enumerate(says, start=terms):
            totals[i] = word
        parts = samples.micro_batches(drawn.sample(), config.micro_batch_size(world_size))
        for i, part in enumerate(parts):
            if i > 0:
                self.engine.step()  # counts the micro-batch before
            terms_BT = self.engine(part, place.stretch.name, place.share(before))
            # DeepSpeed divides by the accumulation steps and averages over workers; padding has no weight.
            loss = (terms_BT[:, 0] * part.w_B).sum() / batch.real_rows * world_size * config.accumulation(world_size)
            totals[:terms] += (terms_BT.detach() * part.w_B[:, None]).sum(0)
            self.engine.backward(loss)
        dist.all_reduce(totals)
        self._check_finite(totals[:terms] / batch.real_rows, batch)
        grad_norm = self._update()
        if not math.isfinite(grad_norm):
            raise JobError(f"{self.phase.name}: the gradient is not finite after {self.progress.crops_seen:,} crops")
        weights = checkpoints.full_weights(self.engine)
        moving = ((name, weight) for name, weight in weights if self.phase.group(name) in peaks)
        self.ema.update(moving, batch.real_rows, seen)
        self.progress = TrainProgress(seen, self.progress.optimizer_steps + 1, batch.next)
        values = totals.tolist()
        return StepResult(
            [v / batch.real_rows for v in values[:terms]], grad_norm, lr * max(peaks.values()),
            Said(*(v > 0 for v in values[terms:])),
        )  # fmt: skip

    def _update(self) -> float:
        """Clip the gradient and update; returns the norm before clipping."""
        if self.zero_stage > 0:
            self.engine.step()
            return float(self.engine.get_global_grad_norm())
        norm = torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.config.gradient_clip)
        self.engine.step()
        return float(norm)

    def _check_finite(self, terms: Tensor, batch: Batch) -> None:
        if not bool(torch.isfinite(terms).all()):
            named = ", ".join(f"{n} {v:.4g}" for n, v in zip(self.phase.terms, terms.tolist(), strict=True))
            raise JobError(
                f"{self.phase.name}: the loss is not finite at step {self.progress.optimizer_steps + 1} "
                f"({self.progress.crops_seen:,} crops, epoch {batch.epoch}): {named}; no update was made. "
                "A lower --lr, or fp32, usually helps"
            )

    def averaged_codec(self) -> tuple[CorrDiffModel, EntropyTables]:
        """Build the whole codec of the averaged weights, on the CPU."""
        averaged = {name: value.to("cpu", copy=True) for name, value in self.ema.average.items()}
        return self.phase.codec(self.config, averaged)


def _least(value: int, device: torch.device) -> int:
    """Give the smallest of the workers' values; collective."""
    least = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def _memory_bytes(device: torch.device) -> int:
    """Give the memory that one worker may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _perceptual(config: TrainConfig, device: torch.device) -> PerceptualLoss | None:
    if config.lpips_weight == 0:
        return None
    path = perceptual.lpips_weights(config.lpips_weights)
    if path is None:
        raise UsageError(perceptual.missing_lpips_sentence())
    return perceptual.lpips_loss(path, device)
