"""Ray Data: shards -> batches of crops for one training worker, in an order that is a pure function of (seed, epoch).

The order of an epoch: shards permuted, then crops shuffled inside windows of `WINDOW_SHARDS` shards. Step s of an
epoch takes the crops at positions [s * batch, (s + 1) * batch); worker r takes the r-th equal part of each. The last
step is padded with rows of weight 0, so that no tail is dropped and no worker waits for another. The cursor
(epoch, step) is all that a resume needs, and it means the same for any number of workers.

A window is a Ray Data read task: it fetches the window's shards, checks them against the manifest, decodes the rows of
its worker and emits one Arrow block.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from ray.data import DataContext, Datasource, ReadTask, read_datasource
from ray.data.block import Block, BlockMetadata
from ray.data.extensions import ArrowTensorArray

from corrdiff.errors import JobError
from corrdiff.images import ImageError, open_image
from pipelines import storage
from pipelines.ray_session import own_errors
from pipelines.shards import Manifest, Shard, read_members

WINDOW_SHARDS = 4
"""Shards among whose crops an epoch's order is shuffled: memory against randomness."""

SEGMENT_WINDOWS = 64
"""Read tasks of one Ray Data execution; a long run is a chain of them."""

READ_CPUS = 0.25
"""A read task mostly waits for storage; a fraction leaves room beside the workers on small machines."""

PREFETCH_BATCHES = 4


class Cursor(NamedTuple):
    """The next step to consume."""

    epoch: int
    step: int


class Batch(NamedTuple):
    """What one worker gets for one step."""

    epoch: int
    keys: list[str]
    pixels_BHWC: npt.NDArray[np.uint8]
    weight_B: npt.NDArray[np.float32]
    """1 for a crop, 0 for padding."""
    real_rows: int
    """Crops in this step over all workers."""
    next: Cursor


class Window(NamedTuple):
    """A part of an epoch's order, as the rows of one worker in it."""

    epoch: int
    shards: tuple[int, ...]
    rows: npt.NDArray[np.int64]
    """[n, 2]: place among `shards`, member in that shard; (-1, -1) is padding."""


def steps_per_epoch(manifest: Manifest, batch: int) -> int:
    return -(-manifest.count // batch)


def epoch_windows(manifest: Manifest, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """The shards of each window of an epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(manifest.shards)).tolist()
    return [tuple(order[i : i + WINDOW_SHARDS]) for i in range(0, len(order), WINDOW_SHARDS)]


def window_order(
    manifest: Manifest, seed: int, epoch: int, index: int, shards: tuple[int, ...]
) -> npt.NDArray[np.int64]:
    """Crops of a window in the order of the epoch, [n, 2]: place among `shards`, member."""
    rows = [(place, row) for place, shard in enumerate(shards) for row in range(manifest.shards[shard].count)]
    return np.random.default_rng([seed, epoch, index]).permutation(np.array(rows, dtype=np.int64).reshape(-1, 2))


def worker_windows(
    manifest: Manifest, seed: int, start: Cursor, batch: int, rank: int, world_size: int
) -> Iterator[Window]:
    """The windows of one worker from the cursor on, epoch after epoch, without end."""
    part = batch // world_size
    epoch, first_step = start
    while True:
        position = 0
        windows = epoch_windows(manifest, seed, epoch)
        for index, shards in enumerate(windows):
            rows = window_order(manifest, seed, epoch, index, shards)
            if index == len(windows) - 1:
                padding = -manifest.count % batch
                rows = np.concatenate([rows, np.full((padding, 2), -1, dtype=np.int64)])
            at = position + np.arange(len(rows))
            mine = (at // batch >= first_step) & (at % batch // part == rank)
            position += len(rows)
            if mine.any():
                yield Window(epoch, shards, rows[mine])
        epoch, first_step = epoch + 1, 0


def stream(
    uri: str, manifest: Manifest, seed: int, start: Cursor, steps: int, batch: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """The next `steps` batches of one worker.

    Raises `JobError` where a shard cannot be read or is not the manifest's.
    """
    part = batch // world_size
    epoch_steps = steps_per_epoch(manifest, batch)
    cursor = start
    windows = worker_windows(manifest, seed, start, batch, rank, world_size)
    pending: list[Window] = []
    pending_rows = 0
    while steps > 0:
        while len(pending) < SEGMENT_WINDOWS and pending_rows < steps * part:
            pending.append(next(windows))
            pending_rows += len(pending[-1].rows)
        # A segment ends where a step of this worker ends, so that no batch spans two executions.
        segment, pending, taken = _whole_steps(pending, part)
        pending_rows -= taken
        for columns in _execute(uri, manifest, segment, part):
            if steps == 0:
                return
            real_rows = min(batch, manifest.count - cursor.step * batch)
            after = Cursor(cursor.epoch, cursor.step + 1)
            after = after if after.step < epoch_steps else Cursor(cursor.epoch + 1, 0)
            yield Batch(cursor.epoch, list(columns["key"]), columns["pixels"], columns["weight"], real_rows, after)
            cursor = after
            steps -= 1


def _whole_steps(windows: list[Window], part: int) -> tuple[list[Window], list[Window], int]:
    """The longest run of whole steps at the front, what is left over, and the rows taken."""
    total = sum(len(w.rows) for w in windows)
    keep = total - total % part
    taken: list[Window] = []
    count = 0
    for i, window in enumerate(windows):
        if count + len(window.rows) > keep:
            cut = keep - count
            if cut:
                taken.append(window._replace(rows=window.rows[:cut]))
            return taken, [window._replace(rows=window.rows[cut:]), *windows[i + 1 :]], keep
        taken.append(window)
        count += len(window.rows)
    return taken, [], keep


def _execute(uri: str, manifest: Manifest, windows: list[Window], part: int) -> Iterator[dict[str, Any]]:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    dataset = read_datasource(
        ShardSource(uri, manifest, windows),
        override_num_blocks=len(windows),
        num_cpus=READ_CPUS,
    )
    with own_errors():
        yield from dataset.iter_batches(
            batch_size=part, batch_format="numpy", prefetch_batches=PREFETCH_BATCHES, drop_last=False
        )


class ShardSource(Datasource):  # type: ignore[misc]
    """A Ray Data source: one read task a window."""

    def __init__(self, uri: str, manifest: Manifest, windows: list[Window]) -> None:
        super().__init__()
        self._uri, self._manifest, self._windows = uri, manifest, windows

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        return sum(len(w.rows) for w in self._windows) * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        return 3 * self._manifest.crop**2 + 64

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        uri, crop = self._uri, self._manifest.crop
        tasks = []
        for window in self._windows:
            shards = [self._manifest.shards[i] for i in window.shards]
            metadata = BlockMetadata(len(window.rows), len(window.rows) * self._row_bytes, None, None)
            tasks.append(ReadTask(_Reader(uri, crop, shards, window.rows), metadata))
        return tasks


class _Reader(NamedTuple):
    """What a read task does; a value that pickles small."""

    uri: str
    crop: int
    shards: list[Shard]
    rows: npt.NDArray[np.int64]

    def __call__(self) -> Iterable[Block]:
        members = [shard_members(self.uri, shard) for shard in self.shards]
        pixels = np.zeros((len(self.rows), self.crop, self.crop, 3), dtype=np.uint8)
        weight = np.zeros(len(self.rows), dtype=np.float32)
        keys: list[str] = []
        for i, (place, member) in enumerate(self.rows.tolist()):
            if place < 0:
                keys.append("")
                continue
            key, data = members[place][member]
            name = self.shards[place].name
            try:
                crop = open_image(data).pixels
            except ImageError as error:
                raise JobError(f"shard {self.uri}/{name}: member {key}.png: {error}") from None
            if crop.shape != pixels.shape[1:]:
                raise JobError(
                    f"shard {self.uri}/{name}: member {key}.png is {crop.shape}, not {self.crop} pixels square"
                )
            pixels[i], weight[i] = crop, 1.0
            keys.append(key)
        yield pa.table({"key": keys, "weight": weight, "pixels": ArrowTensorArray.from_numpy(pixels)})


def shard_members(uri: str, shard: Shard) -> list[tuple[str, bytes]]:
    """Keys and PNG bytes of a shard, in its order, after checking it against the manifest."""
    name = f"{uri}/{shard.name}"
    try:
        data = storage.read_bytes(name)
    except FileNotFoundError:
        raise JobError(f"shard {name} is missing; cut it again with 'corrdiff shard'") from None
    if len(data) != shard.bytes:
        raise JobError(f"shard {name} is truncated: {len(data):,} of {shard.bytes:,} bytes; copy it again")
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise JobError(f"shard {name} is not the manifest's: its SHA-256 differs; copy it again")
    members = list(read_members(data, ".png"))
    if len(members) != shard.count:
        raise JobError(f"shard {name} has {len(members)} crops, the manifest says {shard.count}")
    return members
