"""Ray Data: shards -> batches of crops for each training worker, exactly as the plan says.

Ray Train gives each worker its `CropReader` through `PlannedData`, in the place of a split that would drop tails. A
read task fetches one worker's bytes of one window, and decodes them into a few large Arrow blocks. What comes out is
compared with the plan, row by row, so that a fault anywhere between is an error and never a lost or a repeated crop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from ray.data import DataContext, Datasource, ReadTask, read_datasource
from ray.data.block import Block, BlockMetadata
from ray.data.extensions import ArrowTensorArray
from ray.train import DataConfig

from corrdiff.errors import JobError
from corrdiff.images import ImageError
from pipelines.runtime.session import quiet_execution, ray_errors
from pipelines.shards.format import Manifest, Shard
from pipelines.train import epoch_order
from pipelines.train.batch import Batch
from pipelines.train.crops import Crops, Run, read_run
from pipelines.train.epoch_order import Cursor, Part, Rows

SEGMENT_PARTS = 64
"""Read tasks of one Ray Data execution; a long run is a chain of such executions."""

READ_TASKS = 3
"""Read tasks of one worker at a time: one is being consumed, one decodes, one waits for storage. They reserve no CPU:
where all were taken, one worker's waiting task could keep another's from starting, and both would wait in the next
collective."""

BLOCK_BYTES = 8 << 20
"""Bytes of pixels in a block: large enough for blocks to be few, small enough for the first to be there soon."""

PREFETCH_BATCHES = 4

DATASET = "crops"
"""The name under which Ray Train hands a worker its reader."""


class PlannedData(DataConfig):  # type: ignore[misc]
    """Ray Train's data configuration: to each worker the reader of its own part of the plan."""

    def __init__(self, crops: Crops, seed: int, batch: int) -> None:
        super().__init__(datasets_to_split=[])  # Ray's split drops tails where it is equal and hangs where it is not
        self._common = crops, seed, batch

    def configure(
        self, datasets: Any, world_size: int, worker_handles: Any, worker_node_ids: Any, **_: Any
    ) -> list[dict[str, CropReader]]:
        return [{DATASET: CropReader(*self._common, rank, world_size)} for rank in range(world_size)]


class CropReader(NamedTuple):
    """One worker's view of a dataset of crops."""

    crops: Crops
    seed: int
    batch: int
    rank: int = 0
    world_size: int = 1

    @property
    def manifest(self) -> Manifest:
        """What there is."""
        return self.crops.manifest

    def batches(self, start: Cursor, steps: int) -> Iterator[Batch]:
        """Read the next `steps` batches from the cursor on.

        Raises `JobError` where a shard cannot be read, is not the manifest's, or crops come in another order than
        planned.
        """
        share = self.batch // self.world_size
        cursor = start
        for segment in _segments(epoch_order.parts(self.manifest, self.seed, start, steps, self.batch), self.batch):
            planned = self._planned(segment)
            for columns in self._execute(segment):
                shards, members = columns["shard"], columns["member"]
                wanted_shards, wanted_members = next(planned)
                if not np.array_equal(shards, wanted_shards) or not np.array_equal(members, wanted_members):
                    raise JobError(
                        f"crops came in another order than planned at epoch {cursor.epoch}, step {cursor.step}"
                    )
                after = epoch_order.advance(self.manifest, self.batch, cursor)
                yield Batch(
                    epoch=cursor.epoch,
                    keys=[
                        self.manifest.shards[s].key(m) if s >= 0 else "" for s, m in zip(shards, members, strict=True)
                    ],
                    pixels_BHWC=columns["pixels"],
                    weight_B=(shards >= 0).astype(np.float32),
                    real_rows=min(self.batch, self.manifest.count - cursor.step * self.batch),
                    next=after,
                    read_bytes=int(columns["stored"].sum()),
                )
                cursor = after
            if next(planned, None) is not None:
                raise JobError(f"crops are missing at epoch {cursor.epoch}, step {cursor.step}: {share} were expected")

    def _planned(self, segment: list[Part]) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """List the shard and member of each row, step by step."""
        share = self.batch // self.world_size
        shards, members = (np.empty(0, np.int64) for _ in range(2))
        for part in segment:
            rows = self.share_of(part).rows()
            shards = np.concatenate([shards, _shard_numbers(part, rows)])
            members = np.concatenate([members, rows.member])
            whole = len(shards) // share * share
            for i in range(0, whole, share):
                yield shards[i : i + share], members[i : i + share]
            shards, members = shards[whole:], members[whole:]

    def share_of(self, part: Part) -> Share:
        """Give this worker's rows of a part of the plan."""
        shards = [self.manifest.shards[i] for i in part.shards]
        uri, manifest, codec = self.crops
        return Share(uri, codec, manifest.crop, shards, part, self.seed, self.batch, self.rank, self.world_size)

    def _execute(self, segment: list[Part]) -> Iterator[dict[str, Any]]:
        shares = [share for share in map(self.share_of, segment) if share.row_count]
        dataset = read_datasource(
            ShardSource(shares), override_num_blocks=len(shares), num_cpus=0, concurrency=READ_TASKS
        )
        quiet_execution(dataset.context)
        dataset.context.execution_options.preserve_order = True
        # Blocks under this are held back until they make one of it, and those over it by a half are cut.
        dataset.context.target_max_block_size = int(0.9 * shares[0].block_rows * shares[0].row_bytes)
        with ray_errors():
            yield from dataset.iter_batches(
                batch_size=self.batch // self.world_size, batch_format="numpy", prefetch_batches=PREFETCH_BATCHES
            )


class Share(NamedTuple):
    """One worker's rows of one part: what a read task needs to know, and what it does."""

    uri: str
    codec: str
    """As of `Crops`."""
    crop: int
    shards: list[Shard]
    part: Part
    seed: int
    batch: int
    rank: int
    world_size: int

    @property
    def row_count(self) -> int:
        """How many rows there are, padding included."""
        return epoch_order.row_count(self.part, self.batch, self.rank, self.world_size)

    @property
    def row_bytes(self) -> int:
        """What a row takes in memory, about."""
        return 3 * self.crop**2 + 64

    @property
    def block_rows(self) -> int:
        """Rows of a block, in whole steps."""
        step = self.batch // self.world_size
        return -(-BLOCK_BYTES // (self.row_bytes * step)) * step

    def rows(self) -> Rows:
        """Say which crops the rows are."""
        counts = [shard.count for shard in self.shards]
        return epoch_order.rows_of(counts, self.seed, self.part, self.batch, self.rank, self.world_size)

    def __call__(self) -> Iterable[Block]:
        """Fetch, check and decode; yields Arrow blocks of whole steps."""
        rows = self.rows()
        first: dict[int, int] = {}
        runs: dict[int, Run] = {}
        for place in np.unique(rows.place[rows.place >= 0]).tolist():
            members = rows.member[rows.place == place]
            first[place] = int(members.min())
            last = int(members.max()) + 1
            runs[place] = read_run(self.uri, self.codec, self.shards[place], self.crop, first[place], last)
        numbers = _shard_numbers(self.part, rows)
        for start in range(0, len(numbers), self.block_rows):
            block = slice(start, start + self.block_rows)
            places, members = rows.place[block], rows.member[block]
            pixels = np.zeros((len(places), self.crop, self.crop, 3), dtype=np.uint8)
            stored = np.zeros(len(places), dtype=np.int64)
            for i, (place, member) in enumerate(zip(places.tolist(), members.tolist(), strict=True)):
                if place >= 0:
                    run, number = runs[place], member - first[place]
                    pixels[i], stored[i] = self._decoded(run, number, self.shards[place], member), run.stored[number]
            yield pa.table({
                "shard": numbers[block], "member": members, "stored": stored,
                "pixels": ArrowTensorArray.from_numpy(pixels),
            })  # fmt: skip

    def _decoded(self, run: Run, number: int, shard: Shard, member: int) -> npt.NDArray[np.uint8]:
        try:
            pixels = run.pixels(number)
        except ImageError as error:
            raise JobError(f"shard {self.uri}/{shard.name}: crop {shard.key(member)}.png: {error}") from None
        if pixels.shape != (self.crop, self.crop, 3):
            raise JobError(
                f"shard {self.uri}/{shard.name}: crop {shard.key(member)}.png is {pixels.shape}, "
                f"not {self.crop} pixels square"
            )
        return pixels


class ShardSource(Datasource):  # type: ignore[misc]
    """A Ray Data source: one read task for one worker's rows of a window."""

    def __init__(self, shares: list[Share]) -> None:
        super().__init__()
        self._shares = shares

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        return sum(share.row_count * share.row_bytes for share in self._shares)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        return [
            ReadTask(share, BlockMetadata(share.row_count, share.row_count * share.row_bytes, None, None))
            for share in self._shares
        ]


def _shard_numbers(part: Part, rows: Rows) -> npt.NDArray[np.int64]:
    """Turn places in a part into numbers in the manifest; -1 stays."""
    return np.where(rows.place < 0, -1, np.array(part.shards, dtype=np.int64)[rows.place])


def _segments(parts: Iterator[Part], batch: int) -> Iterator[list[Part]]:
    """Cut parts into runs that end where a step ends, so that no batch spans two executions."""
    segment: list[Part] = []
    for part in parts:
        segment.append(part)
        end = part.end // batch * batch
        if len(segment) >= SEGMENT_PARTS and end > part.start:
            segment[-1] = part._replace(end=end)
            yield segment
            segment = [part._replace(start=end)] if end < part.end else []
    if segment:
        yield segment
