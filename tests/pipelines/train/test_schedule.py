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
from pipelines.train.schedule import Stretch, lr_at, place_at, steps_left

CONFIG = TrainConfig(shards="s", crops_total=1000, lr=1e-3)


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
    rates = [lr_at(CONFIG, share / 20) for share in range(21)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(0.5e-3)
    assert rates[2:9] == [1e-3] * 7
    assert all(earlier > later for earlier, later in itertools.pairwise(rates[8:]))
    assert rates[-1] == pytest.approx(0.03e-3)


def test_a_step_belongs_to_the_stretch_in_which_it_begins() -> None:
    stretches = [Stretch(name, share, {}, (), ()) for name, share in (("a", 0.5), ("none", 0), ("b", 0.3), ("c", 0.2))]
    places = {seen: place_at(CONFIG, stretches, seen) for seen in (0, 499, 500, 650, 799, 800, 1000)}
    assert [place.stretch.name for place in places.values()] == ["a", "a", "b", "b", "b", "c", "c"]
    shares = [place.share(seen) for seen, place in places.items()]
    assert shares == pytest.approx([0, 0.998, 0, 0.5, 299 / 300, 0, 1])
    assert places[499].share(520) == 1  # such a step ends with the rate that its stretch ends with
