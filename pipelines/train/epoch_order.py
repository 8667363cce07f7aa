"""Which crops make which batch: a pure function of the manifest, the seed, the epoch and the batch size.

An epoch is a sequence of positions, one a crop. Step s takes positions [s * batch, (s + 1) * batch), and worker r of W
the r-th equal part of those, its slots. The order:

- Shards are permuted, and dealt into windows of about `WINDOW_BYTES`.
- The crops of a window, one shard after the other, are cut into one run for each slot of the batch; the run is
  shuffled, and its crops go to that slot, one each step.

So a batch has crops from all over its window, never a picture's neighbouring crops alone; what a worker reads of a
window is one run of bytes, a W-th of it; and neither the order nor the batches depend on the number of workers. The
last step is padded, so that no tail is dropped and no worker waits. A cursor (epoch, step) is all that a resume needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.shards.format import Manifest

WINDOW_BYTES = 128 << 20
"""Of shards among whose crops the order is shuffled: memory against randomness."""

MAX_WINDOW_SHARDS = 64


class Cursor(NamedTuple):
    """The next step to consume."""

    epoch: int
    step: int


class Part(NamedTuple):
    """A run of positions of an epoch, inside one window."""

    epoch: int
    window: int
    shards: tuple[int, ...]
    window_start: int
    """Position of the window's first crop."""
    start: int
    end: int
    """Beyond the window's last crop there is padding."""


class Rows(NamedTuple):
    """The crops of one worker in a part, in the order of their steps."""

    place: npt.NDArray[np.int64]
    """Among the part's shards; -1 is padding."""
    member: npt.NDArray[np.int64]


def steps_per_epoch(manifest: Manifest, batch: int) -> int:
    return -(-manifest.count // batch)


def advance(manifest: Manifest, batch: int, cursor: Cursor) -> Cursor:
    """The cursor one step later."""
    step = cursor.step + 1
    return Cursor(cursor.epoch, step) if step < steps_per_epoch(manifest, batch) else Cursor(cursor.epoch + 1, 0)


def window_shards(manifest: Manifest) -> int:
    """Shards in a window."""
    mean = sum(shard.bytes for shard in manifest.shards) / len(manifest.shards)
    return max(1, min(MAX_WINDOW_SHARDS, round(WINDOW_BYTES / max(mean, 1))))


def epoch_windows(manifest: Manifest, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """The shards of each window of an epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(manifest.shards)).tolist()
    k = window_shards(manifest)
    return [tuple(order[i : i + k]) for i in range(0, len(order), k)]


def parts(manifest: Manifest, seed: int, start: Cursor, steps: int, batch: int) -> Iterator[Part]:
    """The next `steps` steps from the cursor on, window by window, epoch after epoch."""
    epoch, wanted_from = start.epoch, start.step * batch
    epoch_end = steps_per_epoch(manifest, batch) * batch
    while steps > 0:
        wanted_to = min(epoch_end, wanted_from + steps * batch)
        at = 0
        windows = epoch_windows(manifest, seed, epoch)
        for number, shards in enumerate(windows):
            count = sum(manifest.shards[i].count for i in shards)
            end = epoch_end if number == len(windows) - 1 else at + count
            first, last = max(at, wanted_from), min(end, wanted_to)
            if first < last:
                yield Part(epoch, number, shards, at, first, last)
            at += count
        steps -= (wanted_to - wanted_from) // batch
        epoch, wanted_from = epoch + 1, 0


def rows_of(counts: list[int], seed: int, part: Part, batch: int, rank: int, world_size: int) -> Rows:
    """The crops of a part that a worker gets.

    `counts` are the crops of the part's shards; `batch` is a multiple of `world_size`.
    """
    ends = np.cumsum(counts)
    n = int(ends[-1])
    slot_of_position = (part.window_start + np.arange(n)) % batch
    per_slot = np.bincount(slot_of_position, minlength=batch)
    # The window's crops, in the order in which they lie, are dealt to the slots in runs, shuffled inside each run.
    shuffle = np.random.default_rng([seed, part.epoch, part.window]).random(n)
    crop_at = np.empty(n, dtype=np.int64)
    crop_at[np.argsort(slot_of_position, kind="stable")] = np.lexsort((shuffle, np.repeat(np.arange(batch), per_slot)))
    positions = np.arange(part.start, part.end)
    mine = positions[positions % batch // (batch // world_size) == rank] - part.window_start
    real = mine < n
    crop = crop_at[np.where(real, mine, 0)]
    place = np.searchsorted(ends, crop, side="right")
    member = crop - (ends - np.array(counts))[place]
    return Rows(np.where(real, place, -1), np.where(real, member, -1))


def row_count(part: Part, batch: int, rank: int, world_size: int) -> int:
    """How many rows `rows_of` gives."""
    share = batch // world_size

    def before(position: int) -> int:
        return position // batch * share + min(max(position % batch - rank * share, 0), share)

    return before(part.end) - before(part.start)
