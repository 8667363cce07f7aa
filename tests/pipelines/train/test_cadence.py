"""Checkpoints and validations come by the clock or by crops, and all workers take them at the same step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from pipelines.train import cadence, deepspeed_private
from pipelines.train.cadence import Cadence
from pipelines.train.config import TrainConfig
from pipelines.train.phases.table import PHASES
from pipelines.train.trainer import Said, Trainer
from tests.support.training import drawn_batches


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, to be set."""
    now = [1000.0]
    monkeypatch.setattr(cadence.time, "monotonic", lambda: now[0])
    return now


def test_it_is_late_after_its_minutes_and_then_from_the_last_time_on(clock: list[float]) -> None:
    ten_minutes = Cadence(None, 10.0)
    clock[0] += 599
    assert not ten_minutes.is_late()
    clock[0] += 1
    assert ten_minutes.is_late()
    clock[0] += 300  # it took a while
    ten_minutes.begin()
    assert not ten_minutes.is_late()
    clock[0] += 600
    assert ten_minutes.is_late()


def test_with_minutes_it_is_due_when_some_clock_says_so_whatever_the_crops() -> None:
    ten_minutes = Cadence(None, 10.0)
    assert not ten_minutes.is_due(0, 1_000_000, late=False)
    assert ten_minutes.is_due(0, 1, late=True)


def test_with_crops_it_is_due_at_their_multiples_whatever_the_clock(clock: list[float]) -> None:
    every_100 = Cadence(100, 10.0)
    clock[0] += 1e6
    assert not every_100.is_late()
    steps = [(seen, seen + 30) for seen in range(0, 300, 30)]
    assert [after for before, after in steps if every_100.is_due(before, after, late=False)] == [120, 210, 300]


def test_every_worker_learns_with_the_loss_what_one_of_them_has_said(sliced_dir: Path, tmp_path: Path) -> None:
    said = [Said(), Said(checkpoint_late=True), Said(validation_late=True), Said(leaving=True, checkpoint_late=True)]
    torch.multiprocessing.spawn(_step, (str(sliced_dir), str(tmp_path), said), nprocs=2)
    assert [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)] == [said, said]


def _step(rank: int, codec: str, out: str, said: list[Said]) -> None:
    """Be one of two workers; in each step only one of them says something, in turns."""
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{out}/store", 2), rank=rank, world_size=2)
    deepspeed_private.use_plain_gloo()
    config = TrainConfig(shards="", init_from=codec, batch=2, crop=64, workers="2")
    trainer = Trainer(config, PHASES["phase2"], torch.device("cpu"), None)
    heard = []
    for step, batch in enumerate(drawn_batches(len(said), 2, 64, rank, 2)):
        drawn = trainer.draw(batch, trainer.progress.crops_seen)
        heard.append(trainer.step(drawn, said[step] if step % 2 == rank else Said()).said)
    torch.save(heard, f"{out}/{rank}.pt")
    dist.destroy_process_group()
