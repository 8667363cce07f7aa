"""The order of crops as a pure function: nothing lost, nothing twice, whatever the workers and wherever it stopped."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import ingest
from pipelines.ingest import Cursor
from pipelines.shards import Manifest, Shard

Row = tuple[int, int]


def manifest_of(counts: list[int]) -> Manifest:
    return Manifest(64, tuple(Shard(f"shard-{i:05d}.tar", n, 1, "") for i, n in enumerate(counts)))


manifests = st.lists(st.integers(1, 23), min_size=1, max_size=11).map(manifest_of)


def epoch_rows(manifest: Manifest, seed: int, start: Cursor, batch: int, world_size: int) -> list[list[Row]]:
    """Crops of each step from the cursor to the end of its epoch, over all workers; padding left out."""
    steps = ingest.steps_per_epoch(manifest, batch) - start.step
    part = batch // world_size
    per_step: list[list[Row]] = [[] for _ in range(steps)]
    for rank in range(world_size):
        rows: list[Row] = []
        for window in ingest.worker_windows(manifest, seed, start, batch, rank, world_size):
            if window.epoch != start.epoch:
                break
            rows += [(window.shards[p] if p >= 0 else -1, m) for p, m in window.rows.tolist()]
        assert len(rows) == steps * part  # every worker has the same number of full steps
        for step in range(steps):
            per_step[step] += [r for r in rows[step * part : (step + 1) * part] if r[1] >= 0]
    return per_step


@given(manifests, st.integers(0, 99), st.integers(0, 5), st.sampled_from([(4, 1), (6, 2), (6, 3), (12, 4)]))
@settings(max_examples=100, deadline=None)
def test_an_epoch_is_exactly_the_manifest(manifest: Manifest, seed: int, epoch: int, sizes: tuple[int, int]) -> None:
    batch, world_size = sizes
    steps = epoch_rows(manifest, seed, Cursor(epoch, 0), batch, world_size)
    seen = Counter(row for step in steps for row in step)
    assert seen == Counter((s, m) for s, shard in enumerate(manifest.shards) for m in range(shard.count))


@given(manifests, st.integers(0, 99), st.data())
@settings(max_examples=100, deadline=None)
def test_a_resumed_epoch_goes_on_with_the_very_next_crop_for_any_number_of_workers(
    manifest: Manifest, seed: int, data: st.DataObject
) -> None:
    batch = 12
    whole = epoch_rows(manifest, seed, Cursor(1, 0), batch, 1)
    step = data.draw(st.integers(0, len(whole) - 1))
    world_size = data.draw(st.sampled_from([1, 2, 3, 4]))
    resumed = epoch_rows(manifest, seed, Cursor(1, step), batch, world_size)
    assert resumed == whole[step:]


def test_epochs_and_seeds_differ_in_order() -> None:
    manifest = manifest_of([9, 9, 9, 9, 9, 9])
    orders = [
        tuple(r for step in epoch_rows(manifest, seed, Cursor(epoch, 0), 6, 1) for r in step)
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len(set(orders)) == 3


def test_crops_are_shuffled_inside_a_window_and_windows_are_bounded() -> None:
    manifest = manifest_of([50] * 10)
    windows = ingest.epoch_windows(manifest, seed=3, epoch=0)
    assert [len(w) for w in windows] == [4, 4, 2]
    order = ingest.window_order(manifest, 3, 0, 0, windows[0])
    assert not np.array_equal(order[:, 1], np.sort(order[:, 1]))
    assert len(np.unique(order, axis=0)) == 200


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 5))
@settings(deadline=None)
def test_segments_hold_whole_steps_and_lose_no_row(counts: list[int], part: int) -> None:
    windows, n = [], 0
    for count in counts:
        windows.append(ingest.Window(0, (0,), np.stack([np.zeros(count, int), np.arange(n, n + count)], axis=1)))
        n += count
    taken, left, rows = ingest._whole_steps(windows, part)
    assert rows % part == 0
    assert rows == sum(len(w.rows) for w in taken)
    assert sum(len(w.rows) for w in left) == n - rows < part
    order = [m for w in [*taken, *left] for m in w.rows[:, 1].tolist()]
    assert order == list(range(n))
