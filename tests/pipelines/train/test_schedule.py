"""Schedules are functions of the crops seen, and all steps together see exactly the crops that were asked for."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.shards.format import Manifest, Shard
from pipelines.train import epoch_order
from pipelines.train.config import TrainConfig
from pipelines.train.epoch_order import Cursor
from pipelines.train.schedule import lr_at, steps_left, warmup_at

CONFIG = TrainConfig(shards="s", crops_total=1000, lr=1e-3, warmup_share=0.25)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 200), st.integers(0, 60))
def test_steps_left_end_with_the_step_that_sees_the_last_crop(
    crops: int, batch: int, crops_total: int, done: int
) -> None:
    config = TrainConfig(shards="s", crops_total=crops_total, batch=batch)
    manifest = Manifest(64, (Shard("shard-00000.tar", crops, 1, "", ""),))
    seen, cursor, remaining = 0, Cursor(0, 0), []
    while seen < crops_total:
        remaining.append(steps_left(config, manifest, seen, cursor))
        seen += min(batch, crops - cursor.step * batch)
        cursor = epoch_order.advance(manifest, batch, cursor)
    assert remaining == list(range(len(remaining), 0, -1))
    assert steps_left(config, manifest, seen, cursor) == 0


def test_the_learning_rate_rises_stays_and_falls() -> None:
    rates = [lr_at(CONFIG, crops) for crops in range(0, 1001, 50)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(0.5e-3)
    assert rates[2:9] == [1e-3] * 7
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[8:]))
    assert rates[-1] == pytest.approx(0.03e-3)


def test_the_warm_up_is_done_after_its_share_of_the_crops() -> None:
    assert [warmup_at(CONFIG, crops) for crops in (0, 125, 250, 1000)] == [0, 0.5, 1, 1]
    assert warmup_at(TrainConfig(shards="s", warmup_share=0), 0) == 1
