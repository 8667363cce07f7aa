"""One phase on one worker: DeepSpeed's engine, the weight average, the schedules, one step. Knows nothing of Ray."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import numpy as np
import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from corrdiff import heap, perceptual
from corrdiff.codec_directory import load_codec, load_networks
from corrdiff.config import TransformConfig, preset
from corrdiff.ema import Ema
from corrdiff.errors import JobError, UsageError
from corrdiff.networks.model import CorrDiffModel
from corrdiff.perceptual import PerceptualLoss
from pipelines.shards.format import Manifest
from pipelines.train import checkpoints, epoch_order, phase1, phase2, samples
from pipelines.train.checkpoints import Progress, Restored
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.deepspeed_config import choose_stage, deepspeed_config
from pipelines.train.epoch_order import Cursor
from pipelines.train.export import model_with
from pipelines.train.ingest import Batch

WARMUP_LR_SHARE = 0.1
DECAY_FROM_SHARE = 0.4
FINAL_LR_SHARE = 0.03
EMA_HALFLIFE_SHARE = 0.03
"""Half-life of the weight average, as a share of the run."""


class StepResult(NamedTuple):
    """One optimizer step, over all workers."""

    terms: list[float]
    """Means over the real crops of the batch, in the phase's order of terms."""
    grad_norm: float
    lr: float
    leaving: bool
    """Some worker has said that its machine is about to go away."""


def lr_at(config: TrainConfig, crops_seen: int) -> float:
    """Linear warm-up, plateau, cosine decay; all in crops."""
    share = crops_seen / config.crops_total
    if share < WARMUP_LR_SHARE:
        return config.lr * share / WARMUP_LR_SHARE
    decay = max(0.0, (share - DECAY_FROM_SHARE) / (1 - DECAY_FROM_SHARE))
    return config.lr * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * min(decay, 1.0))))


def warmup_at(config: TrainConfig, crops_seen: int) -> float:
    """Share of phase 1's warm-up that is done, at most 1."""
    length = config.warmup_share * config.crops_total
    return min(1.0, crops_seen / length) if length > 0 else 1.0


def build_model(config: TrainConfig) -> CorrDiffModel:
    """Phase 1's networks at their start: from a codec, or drawn from the seed."""
    if config.init_from is not None:
        return load_networks(config.init_from)[0]
    torch.manual_seed(config.seed)
    return CorrDiffModel(preset(config.preset))


def build_phase(
    config: TrainConfig, phase: PhaseName, device: torch.device, perceptual: PerceptualLoss | None
) -> phase1.Phase1 | phase2.Phase2:
    """The module that DeepSpeed is to wrap."""
    recompute = config.checkpoints_activations
    if phase == "phase1":
        return phase1.Phase1(build_model(config), config.beta, config.lpips_weight, perceptual, recompute)
    if config.init_from is None:
        raise UsageError("phase 2 needs the codec of a finished phase 1: give --init-from CODEC")
    codec = load_codec(config.init_from, device, config.precision)
    decoder = load_networks(config.init_from)[0].decoder
    return phase2.Phase2(codec, decoder, config.lpips_weight, perceptual, recompute)


class Trainer:
    """A phase on one worker of an initialised process group."""

    def __init__(self, config: TrainConfig, phase: PhaseName, device: torch.device, restored: Restored | None) -> None:
        import deepspeed

        self.config, self.phase, self.device = config, phase, device
        self.term_names = phase1.TERMS if phase == "phase1" else phase2.TERMS
        self.progress = restored.progress if restored else Progress(0, 0, Cursor(0, 0))
        module = build_phase(config, phase, device, _perceptual(config, device))
        module.to(device)  # pictures are channels_last; DeepSpeed wants the weights themselves contiguous
        self.transform = (module.model if isinstance(module, phase1.Phase1) else module._frozen[0]).config.transform
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
            # Its shared-memory all-reduce would be compiled at every first start; gloo needs no compiler.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        world_size, parameters = dist.get_world_size(), sum(p.numel() for _, p in trained)
        self.zero_stage = choose_stage(config, parameters, world_size, _memory_bytes(device))
        # Only the first worker's count is used, and counting takes a while.
        self.flops_per_crop = (
            flops_per_crop(module, self.transform, config.crop, device) if dist.get_rank() == 0 else 0.0
        )
        self.engine, *_ = deepspeed.initialize(
            model=module, model_parameters=[p for _, p in trained],
            config=deepspeed_config(config, world_size, self.zero_stage),
        )  # fmt: skip
        if restored:
            checkpoints.restore_moments(self.engine, restored)

    def step(self, batch: Batch, leaving: bool = False) -> StepResult:
        """Forward, backward and update on this worker's part of a batch.

        `leaving` says that this worker's machine is about to go away; all workers learn it with the loss.

        Raises `JobError` on every worker, before the update, where a loss term is not finite.
        """
        config, world_size = self.config, dist.get_world_size()
        lr = lr_at(config, self.progress.crops_seen + batch.real_rows)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        warmup = warmup_at(config, self.progress.crops_seen)
        sample = samples.draw(batch, config.seed, config.crop, self.transform, self.device)
        totals = torch.zeros(len(self.term_names) + 1, device=self.device)
        totals[-1] = leaving
        parts = samples.micro_batches(sample, config.micro_batch_size(world_size))
        for i, part in enumerate(parts):
            if i > 0:
                self.engine.step()  # counts the micro-batch before
            terms_BT = self.engine(part, warmup)
            # DeepSpeed divides by the accumulation steps and averages over workers; padding has no weight.
            loss = (terms_BT[:, 0] * part.w_B).sum() / batch.real_rows * world_size * config.accumulation(world_size)
            totals[:-1] += (terms_BT.detach() * part.w_B[:, None]).sum(0)
            self.engine.backward(loss)
        dist.all_reduce(totals)
        self._check_finite(totals[:-1] / batch.real_rows, batch)
        grad_norm = self._update()
        if not math.isfinite(grad_norm):
            raise JobError(f"{self.phase}: the gradient is not finite after {self.progress.crops_seen:,} crops")
        seen = self.progress.crops_seen + batch.real_rows
        self.ema.update(checkpoints.full_weights(self.engine), batch.real_rows, seen)
        self.progress = Progress(seen, self.progress.optimizer_steps + 1, batch.next)
        values = totals.tolist()
        return StepResult([v / batch.real_rows for v in values[:-1]], grad_norm, lr, values[-1] > 0)

    def _update(self) -> float:
        """Clip the gradient and update; its norm before clipping."""
        if self.zero_stage > 0:
            self.engine.step()
            return float(self.engine.get_global_grad_norm())
        norm = torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.config.gradient_clip)
        self.engine.step()
        return float(norm)

    def _check_finite(self, terms: Tensor, batch: Batch) -> None:
        if not bool(torch.isfinite(terms).all()):
            named = ", ".join(f"{n} {v:.4g}" for n, v in zip(self.term_names, terms.tolist(), strict=True))
            raise JobError(
                f"{self.phase}: the loss is not finite at step {self.progress.optimizer_steps + 1} "
                f"({self.progress.crops_seen:,} crops, epoch {batch.epoch}): {named}; no update was made. "
                "A lower --lr, or fp32, usually helps"
            )

    def averaged_model(self) -> CorrDiffModel:
        """A copy of all networks with the averaged weights, on the CPU."""
        return model_with(self.config, self.phase, {k: v.cpu() for k, v in self.ema.average.items()})


def flops_per_crop(module: nn.Module, transform: TransformConfig, crop: int, device: torch.device) -> float:
    """Of a forward and a backward pass over one crop, recomputation of activations included."""
    blank = np.zeros((1, crop, crop, 3), np.uint8)
    batch = Batch(0, ["blank"], blank, np.ones(1, np.float32), 1, Cursor(0, 0), 0)
    # Apart from training: under the counter some operations run in another form, with other last bits.
    with FlopCounterMode(display=False) as counter:
        module(samples.draw(batch, 0, crop, transform, device), 1.0)[:, 0].sum().backward()
    module.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def _memory_bytes(device: torch.device) -> int:
    """What one worker may use."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def steps_left(config: TrainConfig, manifest: Manifest, progress: Progress) -> int:
    """Steps until `crops_total` crops are seen; the last step of an epoch has fewer crops than the others."""
    epoch_steps = epoch_order.steps_per_epoch(manifest, config.batch)
    left = config.crops_total - progress.crops_seen
    rest_of_epoch = manifest.count - min(manifest.count, progress.cursor.step * config.batch)
    if left <= rest_of_epoch:
        return max(0, -(-left // config.batch))
    left -= rest_of_epoch
    steps = epoch_steps - progress.cursor.step
    return steps + left // manifest.count * epoch_steps + -(-(left % manifest.count) // config.batch)


def _perceptual(config: TrainConfig, device: torch.device) -> PerceptualLoss | None:
    if config.lpips_weight == 0:
        return None
    path = perceptual.lpips_weights(config.lpips_weights)
    if path is None:
        raise UsageError(perceptual.missing_lpips_sentence())
    return perceptual.lpips_loss(path, device)
