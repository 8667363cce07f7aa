"""The next batch is made beside the step: the same values in the same order, and only what is waited for is counted."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from corrdiff.config import tiny
from corrdiff.errors import JobError
from pipelines.train import samples, worker
from pipelines.train.ahead import Drawn, ahead
from pipelines.train.config import TrainConfig
from pipelines.train.costs import Meter
from pipelines.train.phases.table import PHASES
from pipelines.train.trainer import Trainer
from tests.support.training import drawn_batches

LONG_S = 20.0
CONFIG = TrainConfig(
    shards="", crops_total=12, batch=2, crop=64, transforms_share=1 / 3, score_share=1 / 3, zero_stage=0
)


def test_values_come_in_their_order_to_the_last() -> None:
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead(iter(()))) == []


def test_the_next_value_is_made_while_the_one_before_is_used_and_no_other() -> None:
    made = [threading.Event() for _ in range(4)]

    def values() -> Iterator[int]:
        for i, event in enumerate(made):
            event.set()
            yield i

    used = ahead(values())
    for i in range(3):
        assert next(used) == i
        assert made[i + 1].wait(LONG_S), "the next one was begun only when it was asked for"
        assert not any(event.is_set() for event in made[i + 2 :])


def test_what_goes_wrong_is_raised_in_its_place() -> None:
    def values() -> Iterator[int]:
        yield 0
        yield 1
        raise JobError("shard part-00002.tar is cut short")

    used = ahead(values())
    assert [next(used), next(used)] == [0, 1]
    with pytest.raises(JobError, match="is cut short"):
        next(used)


def test_who_stops_early_does_not_wait_for_what_is_being_made() -> None:
    begun, released = threading.Event(), threading.Event()

    def values() -> Iterator[int]:
        yield 0
        begun.set()
        yield int(released.wait(LONG_S))

    used = ahead(values())
    assert next(used) == 0
    assert begun.wait(LONG_S)
    used.close()  # type: ignore[attr-defined]
    assert not released.is_set()
    released.set()


@pytest.mark.parametrize(
    ("drawing_s", "step_s", "least", "most"), [(0.1, 0.05, 0.3, 1.0), (0.05, 0.15, 0.0, 0.3)], ids=["slow", "fast"]
)
def test_what_is_waited_for_a_drawing_is_counted_and_what_is_drawn_beside_the_step_is_not(
    drawing_s: float, step_s: float, least: float, most: float
) -> None:
    def drawn() -> Iterator[Drawn]:
        for batch in drawn_batches(8, 1, 64):
            time.sleep(drawing_s)
            yield Drawn(batch, samples.pack(batch, 0, 64, tiny().transform), None)

    trainer, meter = SimpleNamespace(flops_per_crop=0.0), Meter(torch.device("cpu"))
    started = time.monotonic()
    for _ in worker._metered(ahead(drawn()), trainer, meter):  # type: ignore[arg-type]
        time.sleep(step_s)
    assert least <= meter._waited_s / (time.monotonic() - started) <= most


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_that_draws_ahead_has_the_losses_of_one_that_does_not_over_all_stretches(
    phase: str, sliced_dir: Path
) -> None:
    config = dataclasses.replace(CONFIG, init_from=str(sliced_dir))
    batches = drawn_batches(6, 2, 96)
    one, other = (Trainer(config, PHASES[phase], torch.device("cpu"), None) for _ in range(2))  # type: ignore[index]
    expected = [one.step(one.draw(batch, one.progress.crops_seen)) for batch in batches]
    found = [other.step(drawn) for drawn in ahead(worker._draw(iter(batches), other))]
    assert found == expected
    assert other.progress == one.progress


@pytest.mark.usefixtures("process_group")
def test_a_batch_is_drawn_with_the_noise_of_the_stretch_that_it_falls_into(sliced_dir: Path) -> None:
    config = dataclasses.replace(CONFIG, init_from=str(sliced_dir))
    trainer = Trainer(config, PHASES["phase1"], torch.device("cpu"), None)
    drawn = ahead(worker._draw(iter(drawn_batches(6, 2, 96)), trainer))
    absent = [tuple(each.packed.absent) for each in drawn]
    assert absent == [("eps_BCHW",), ("eps_BCHW",), (), (), (), ()]
