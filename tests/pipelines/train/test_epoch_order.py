"""The order of crops as a pure function: nothing lost, nothing twice, whatever the workers and wherever it stopped."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.shards.format import Manifest, Shard
from pipelines.train import epoch_order, ingest
from pipelines.train.crops import Crops
from pipelines.train.epoch_order import Cursor

Crop = tuple[int, int]
STORED = 1 << 20


def manifest_of(counts: list[int], stored: int = STORED) -> Manifest:
    return Manifest(64, tuple(Shard(f"shard-{i:05d}.tar", n, stored, "", "") for i, n in enumerate(counts)))


# From one window to one a shard.
manifests = st.builds(
    manifest_of, st.lists(st.integers(1, 23), min_size=1, max_size=11), st.sampled_from([STORED, 50 << 20, 1 << 30])
)
sizes = st.sampled_from([(4, 1), (6, 2), (6, 3), (12, 4), (5, 5)])


def steps_of(manifest: Manifest, seed: int, start: Cursor, steps: int, batch: int, world_size: int) -> list[list[Crop]]:
    """Crops of each step, worker after worker; padding as (-1, -1)."""
    share = batch // world_size
    per_step: list[list[Crop]] = [[] for _ in range(steps)]
    for rank in range(world_size):
        reader = ingest.CropReader(Crops("", manifest), seed, batch, rank, world_size)
        parts = epoch_order.parts(manifest, seed, start, steps, batch)
        planned = [row for segment in ingest._segments(parts, batch) for row in reader._planned(segment)]
        assert len(planned) == steps
        for step, (shards, members) in zip(per_step, planned, strict=True):
            assert len(shards) == share
            step += zip(shards.tolist(), members.tolist(), strict=True)
    return per_step


def real(steps: list[list[Crop]]) -> list[list[Crop]]:
    return [[crop for crop in step if crop[0] >= 0] for step in steps]


@given(manifests, st.integers(0, 99), st.integers(0, 5), sizes)
@settings(max_examples=200, deadline=None)
def test_an_epoch_is_exactly_the_manifest(manifest: Manifest, seed: int, epoch: int, size: tuple[int, int]) -> None:
    batch, world_size = size
    steps = epoch_order.steps_per_epoch(manifest, batch)
    found = real(steps_of(manifest, seed, Cursor(epoch, 0), steps, batch, world_size))
    assert Counter(c for step in found for c in step) == every_crop(manifest)
    assert [len(step) for step in found[:-1]] == [batch] * (steps - 1)


def every_crop(manifest: Manifest) -> Counter[Crop]:
    return Counter((s, m) for s, shard in enumerate(manifest.shards) for m in range(shard.count))


@given(manifests, st.integers(0, 99), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_kills_and_resumes_with_any_number_of_workers_give_each_epoch_exactly(
    manifest: Manifest, seed: int, schedule: int
) -> None:
    """A random schedule: run some steps on some workers, be killed at the last checkpoint or beyond it, go on."""
    chance = random.Random(schedule)
    batch, epochs = 12, 3
    total = epochs * epoch_order.steps_per_epoch(manifest, batch)
    undisturbed = steps_of(manifest, seed, Cursor(0, 0), total, batch, 1)
    cursor, kept, found = Cursor(0, 0), 0, []
    while kept < total:
        world_size = chance.choice([1, 2, 3])
        ran = chance.randint(1, total - kept)
        saved = chance.randint(0, ran)  # steps after the last checkpoint are lost and done again
        steps = steps_of(manifest, seed, cursor, ran, batch, world_size)[:saved]
        found += steps
        kept += saved
        for _ in range(saved):
            cursor = epoch_order.advance(manifest, batch, cursor)
    assert found == undisturbed  # the same crops in the same slots of the same steps
    per_epoch = total // epochs
    for epoch in range(epochs):
        steps = real(found[epoch * per_epoch : (epoch + 1) * per_epoch])
        assert Counter(c for step in steps for c in step) == every_crop(manifest)


@given(manifests, st.integers(0, 9), sizes, st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_counting_a_workers_rows_agrees_with_listing_them(
    manifest: Manifest, seed: int, size: tuple[int, int], skip: int
) -> None:
    batch, world_size = size
    start = Cursor(0, skip % epoch_order.steps_per_epoch(manifest, batch))
    for part in epoch_order.parts(manifest, seed, start, 7, batch):
        counts = [manifest.shards[i].count for i in part.shards]
        for rank in range(world_size):
            rows = epoch_order.rows_of(counts, seed, part, batch, rank, world_size)
            assert len(rows.place) == len(rows.member) == epoch_order.row_count(part, batch, rank, world_size)


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_read_disjoint_runs_of_a_window(world_size: int) -> None:
    manifest = manifest_of([40, 40, 40])
    (part,) = epoch_order.parts(manifest, 0, Cursor(0, 0), 15, 8)
    before = 0
    for rank in range(world_size):
        rows = epoch_order.rows_of([40, 40, 40], 0, part, 8, rank, world_size)
        flat = np.sort(rows.place * 40 + rows.member)
        assert flat.tolist() == list(range(before, before + 120 // world_size))
        before += 120 // world_size


def test_epochs_and_seeds_differ_in_order() -> None:
    manifest = manifest_of([9, 9, 9, 9, 9, 9])
    orders = [
        tuple(c for step in steps_of(manifest, seed, Cursor(epoch, 0), 9, 6, 1) for c in step)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(orders)) == 3


def test_windows_are_bounded_in_bytes_and_shuffled_inside() -> None:
    assert epoch_order.window_shards(manifest_of([50] * 300, stored=1)) == epoch_order.MAX_WINDOW_SHARDS
    assert epoch_order.window_shards(manifest_of([50] * 300, stored=32 << 20)) == 4
    assert epoch_order.window_shards(manifest_of([50] * 300, stored=1 << 30)) == 1
    manifest = manifest_of([50] * 10, stored=32 << 20)
    windows = epoch_order.epoch_windows(manifest, seed=3, epoch=0)
    assert [len(w) for w in windows] == [4, 4, 2]
    steps = steps_of(manifest, 3, Cursor(0, 0), 20, 10, 1)
    assert all(len({shard for shard, _ in step}) == 4 for step in steps)  # each batch is from all of its window
    assert {shard for step in steps for shard, _ in step} == set(windows[0])


def test_long_runs_are_cut_where_a_step_ends() -> None:
    manifest = manifest_of([7] * 200, stored=1 << 30)
    segments = list(ingest._segments(epoch_order.parts(manifest, 0, Cursor(0, 0), 200, 16), 16))
    assert len(segments) >= 3
    assert all(segment[-1].end % 16 == 0 for segment in segments)
    positions = [(part.epoch, p) for segment in segments for part in segment for p in range(part.start, part.end)]
    epoch = epoch_order.steps_per_epoch(manifest, 16) * 16
    assert positions == [divmod(i, epoch) for i in range(200 * 16)]
