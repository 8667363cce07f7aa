"""What each worker of a training run does: the one training loop. Blind to what a phase trains.

Ray Train starts the workers, DeepSpeed steps, Ray Data feeds.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from corrdiff import metrics, perceptual
from corrdiff.codec import CorrDiffCodec
from corrdiff.errors import JobError, UsageError
from pipelines.files import storage
from pipelines.runtime.ray_private import is_leaving
from pipelines.shards.format import Manifest
from pipelines.train import checkpoints, ingest, validation
from pipelines.train.ahead import Drawn, ahead
from pipelines.train.batch import Batch
from pipelines.train.board import BoardState
from pipelines.train.cadence import Cadence
from pipelines.train.config import TrainConfig
from pipelines.train.costs import Meter
from pipelines.train.crops import Crops, open_crops
from pipelines.train.epoch_order import Cursor
from pipelines.train.first_crops import first_crops
from pipelines.train.observer import Observer
from pipelines.train.phases.base import Phase
from pipelines.train.phases.table import PHASES
from pipelines.train.run_directory import CHECKPOINTS
from pipelines.train.schedule import steps_left
from pipelines.train.trainer import Said, StepResult, Trainer
from pipelines.train.validation import HeldOut


def work(loop: dict[str, Any]) -> None:
    """Run a phase to its end, as one worker of Ray Train.

    Args:
        loop: "config" (the fields of a `TrainConfig`), "phase" (its name), "run" (RUN/PHASE), "board" (the actor).

    Raises:
        JobError, UsageError: trying again would come to the same; the board says so too.
    """
    state: BoardState = ray.get(loop["board"].read.remote())
    if state.failed:
        return
    config, phase, run = TrainConfig(**loop["config"]), PHASES[loop["phase"]], loop["run"]
    device = _device()
    first = ray.train.get_context().get_world_rank() == 0
    observer = Observer(loop["board"], state.tracking, config, phase, run) if first else None
    try:
        _train(config, phase, run, device, observer)
    except BaseException as error:
        if isinstance(error, JobError | UsageError):
            # Raising ends the other workers too, which may be waiting in a collective. The restart that Ray Train then
            # makes finds this on the board and ends.
            ray.get(loop["board"].fail.remote(str(error)))
        if observer:
            observer.close("FAILED")
        raise


def _device() -> torch.device:
    """Give this worker's GPU, else its share of the processors."""
    if torch.cuda.is_available() and ray.get_gpu_ids():
        device: torch.device = ray.train.torch.get_device()
        torch.backends.cudnn.benchmark = True  # crops are all of one size
        return device
    os.environ["DS_ACCELERATOR"] = "cpu"
    workers_here = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // workers_here))
    return torch.device("cpu")


def _train(config: TrainConfig, phase: Phase, run: str, device: torch.device, observer: Observer | None) -> None:
    """Step until all crops are seen, and between steps measure, save and validate; then export."""
    crops = open_crops(config)
    trainer = _restore(config, phase, run, device, observer, crops)
    steps = steps_left(config, crops.manifest, trainer.progress.crops_seen, trainer.progress.cursor)
    reader = ray.train.get_dataset_shard(ingest.DATASET)
    assert isinstance(reader, ingest.CropReader)
    held_out = validation.read_held_out(crops)
    meter = Meter(device)
    epoch = _EpochCheck(crops.manifest, config.batch, trainer.progress.cursor)
    saving = Cadence(config.checkpoint_every, config.checkpoint_minutes)
    validating = Cadence(config.validate_every, config.validate_minutes)
    saved_for_leaving = False
    batches = ahead(_draw(reader.batches(trainer.progress.cursor, steps), trainer))
    for i, drawn in enumerate(_metered(batches, trainer, meter)):
        batch = drawn.batch
        before = trainer.progress.crops_seen
        result = trainer.step(drawn, Said(is_leaving(), saving.is_late(), validating.is_late()))
        said = result.said
        seen = trainer.progress.crops_seen
        last = i == steps - 1
        epoch.add(batch, device)
        if observer:
            observer.after_step(trainer, result, batch.real_rows)
        if trainer.progress.optimizer_steps % config.log_every == 0 or last:
            costs = meter.collect()
            if observer:
                observer.after_window(trainer, costs)
        saves = saving.is_due(before, seen, said.checkpoint_late) or (said.leaving and not saved_for_leaving)
        if saves or last:
            saved_for_leaving = said.leaving
            _save(trainer, run, result, observer)
            saving.begin()
        if validating.is_due(before, seen, said.validation_late) or last:
            _validate(trainer, held_out, observer)
            validating.begin()
    if observer:
        observer.export(trainer)
        observer.close("FINISHED")


def _restore(
    config: TrainConfig, phase: Phase, run: str, device: torch.device, observer: Observer | None, crops: Crops
) -> Trainer:
    """Build the trainer as the newest readable checkpoint has it, the same on all workers; collective."""
    restored, problems = checkpoints.load_newest(storage.join(run, CHECKPOINTS))
    trainer = Trainer(config, phase, device, restored, functools.partial(first_crops, crops))
    _check_agreement(trainer)
    if observer:
        for problem in problems:
            observer.say(f"{problem}; going on from the one before")
        if restored:
            observer.say(f"{phase.name} goes on from {trainer.progress.crops_seen:,} crops")
    return trainer


def _check_agreement(trainer: Trainer) -> None:
    """Raise `JobError` where the workers have not restored the same checkpoint; collective."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, trainer.progress)
    if any(progress != trainer.progress for progress in every):
        raise JobError(f"the workers restored different checkpoints: {sorted({p.crops_seen for p in every})} crops")


def _draw(batches: Iterator[Batch], trainer: Trainer) -> Iterator[Drawn]:
    """Draw the sample of each batch."""
    seen = trainer.progress.crops_seen
    for batch in batches:
        yield trainer.draw(batch, seen)
        seen += batch.real_rows


def _metered(batches: Iterator[Drawn], trainer: Trainer, meter: Meter) -> Iterator[Drawn]:
    """Hand on drawn batches, and count how long each was waited for: for its crops, or for the drawing."""
    while True:
        waited_from = time.monotonic()
        drawn = next(batches, None)
        if drawn is None:
            return
        batch = drawn.batch
        waited_s = time.monotonic() - waited_from
        meter.add(batch.real_rows, batch.real_rows * trainer.flops_per_crop, waited_s, batch.read_bytes)
        yield drawn


class _EpochCheck:
    """Compares what all workers consumed of an epoch with the manifest."""

    def __init__(self, manifest: Manifest, batch: int, start: Cursor) -> None:
        self._manifest, self._batch, self._start, self._rows = manifest, batch, start, 0

    def add(self, batch: Batch, device: torch.device) -> None:
        """Count a step; collective where it ends an epoch. Raises `JobError` where that epoch was not the manifest."""
        self._rows += int(batch.weight_B.sum())
        if batch.next.epoch == batch.epoch:
            return
        consumed = torch.tensor(self._rows, dtype=torch.int64, device=device)
        dist.all_reduce(consumed)
        epoch, step = self._start
        expected = self._manifest.count - step * self._batch
        if int(consumed) != expected:
            raise JobError(f"epoch {epoch} had {int(consumed):,} crops from step {step} on, not {expected:,}")
        self._start, self._rows = batch.next, 0


def _save(trainer: Trainer, run: str, result: StepResult, observer: Observer | None) -> None:
    """Write a checkpoint; collective."""
    seen, keep = trainer.progress.crops_seen, trainer.config.keep_checkpoints
    checkpoints.save(storage.join(run, CHECKPOINTS), trainer.engine, trainer.ema, trainer.progress, keep)
    ray.train.report({"crops_seen": seen, "loss": result.terms[0]})
    if result.said.leaving and observer:
        observer.say(f"{trainer.phase.name}: a machine is about to go away; checkpoint at {seen:,} crops")


def _validate(trainer: Trainer, held_out: HeldOut, observer: Observer | None) -> None:
    """Measure real encodes and decodes by the averaged weights; collective."""
    model, tables = trainer.averaged_codec()
    codec = CorrDiffCodec(model, tables, bytes(8), trainer.device)
    path = perceptual.lpips_weights(trainer.config.lpips_weights)
    networks = {metrics.LPIPS.name: perceptual.load_lpips(path)} if path is not None else {}
    values, rows = validation.measure(codec, held_out, networks)
    if observer:
        observer.validated(trainer, values, rows)
