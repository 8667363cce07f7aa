"""Pictures straight out of a compressed dataset, for training on it without unpacking it first.

for key, picture in CompressedPictures("compressed", "codec"): ...     torch, in as many processes as you like
read_compressed("compressed", "codec").iter_batches()                  Ray Data
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from corrdiff.codec import CorrDiffCodec, Decoding, Precision
from corrdiff.codec_directory import load_codec
from corrdiff.coding import batch_key
from corrdiff.config import LATENT_STRIDE
from corrdiff.errors import JobError, UsageError
from corrdiff.format import bitstream
from corrdiff.format.bitstream import Header
from pipelines.dataset.fields import values
from pipelines.dataset.parts import PictureFile
from pipelines.dataset.units import read_records
from pipelines.decompress.config import DecompressConfig
from pipelines.decompress.order import Dealt, EpochOrder, deal, left_after, skip
from pipelines.decompress.stages import alike_together, decoded, open_dataset, portions, read_files
from pipelines.runtime.resources import pools


class CompressedPictures(IterableDataset[tuple[Any, ...]]):
    """Keys and decoded pictures, uint8 [3, H, W], of a finished compressed dataset; with `fields`, a dictionary of what
    travels with each picture as well: ending (`txt`) -> bytes, column -> value.

    An epoch is dealt to the ranks of `torch.distributed`, where it is in use, and to the workers of a `DataLoader`, in
    equal shares; each picture comes once. Its order is a pure function of seed and epoch. Sizes differ: give the loader
    `batch_size=None`, or ask for crops.

    `state_dict` and `load_state_dict` are those that torchdata's `StatefulDataLoader` asks for, so that its state goes
    on within an epoch. At another number of ranks or workers, `merge_states` of all readers goes on with what none of
    them has had.
    """

    def __init__(
        self, dataset: str, codec: str, decoding: Decoding = "privileged", seed: int | None = None, *,
        crop: int | None = None, latents: bool = False, drop_last: bool = False, device: str = "auto",
        precision: Precision | None = None, max_pixels: int = bitstream.MAX_PIXELS, fields: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
            dataset: what `corrdiff compress` wrote: a directory or any fsspec URI.
            codec: the codec that it was compressed with.
            decoding: "privileged" is D's picture, which needs one network pass and not one a step; "corrected" is what
                `corrdiff decompress` gives.
            seed: with it, parts and the pictures of a part come in an order of that seed and the epoch.
            crop: a square of so many pixels of each picture, where the seed and the epoch say; of a tiled picture only
                the tiles that it needs are decoded, and it is what the whole picture has there. Smaller pictures are
                mirrored at their ends.
            latents: what D would take instead of its picture, y_hat / g_q, float32 [M, h, w] with sides of a 16th. No
                network runs but the entropy model's. A crop is then a multiple of 16 pixels.
            drop_last: leave out what would make the shares of ranks differ (by one picture).
            device: where the networks run; "auto" is this process's GPU, but a CPU in the workers of a loader. In those
                it means one codec each.
            max_pixels: larger pictures are an error.
            fields: whether captions, labels and whatever else travels with the pictures comes with them.

        Raises:
            UsageError: no finished dataset, another codec's, or no such crop.
        """
        if crop is not None and (crop < 1 or (latents and crop % LATENT_STRIDE)):
            raise UsageError(f"crop must be positive, and with latents a multiple of {LATENT_STRIDE}, not {crop}")
        job = open_dataset(dataset, codec, DecompressConfig(decoding=decoding))
        self.dataset, self.codec, self.plan = job.dataset, job.codec, job.plan
        self._whole = job.plan
        self.decoding, self.seed, self.epoch, self.max_pixels = decoding, seed, 0, max_pixels
        self.crop, self.latents, self.drop_last, self.fields = crop, latents, drop_last, fields
        records = read_records(self.dataset, range(self.plan.units))
        self._counts = np.fromiter((r.pictures - r.failures for r in records), np.int64, self.plan.units)
        self._on = device, precision
        self._loaded: CorrDiffCodec | None = None
        self._history: list[Dealt] = []
        self._done = 0
        self._goes_on = False
        self._state_of: tuple[int, int] | None = None
        """Of which reader, and how many, the state is that was loaded; None of one that is for any."""
        self._ranks_of_parent: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For the workers of a loader, which know nothing of ranks where they are not forked."""
        return self.__dict__ | {"_loaded": None, "_ranks_of_parent": self._ranks()}

    def _ranks(self) -> tuple[int, int]:
        """How many there are, and which one this is."""
        if dist.is_initialized():
            return dist.get_world_size(), dist.get_rank()
        return self._ranks_of_parent or (1, 0)

    def _place(self) -> tuple[int, int, int]:
        """Which reader this is, how many there are, and of how many ranks."""
        worker, (ranks, rank) = get_worker_info(), self._ranks()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        return rank * workers + worker_id, ranks * workers, ranks

    def set_epoch(self, epoch: int) -> None:
        """Which order comes next; with loader workers that persist, before the loader is made. An epoch of which a
        state is loaded goes on where that was taken."""
        if epoch != self.epoch:
            self.epoch, self._goes_on = epoch, False
            self._history, self._done = [], 0

    def state_dict(self) -> dict[str, Any]:
        """How far this reader is: a few numbers, for `load_state_dict` of the same reader, or for `merge_states`."""
        reader, readers, ranks = self._place()
        return {
            "dataset": self.plan.name, "units": self.plan.units, "seed": self.seed, "drop_last": self.drop_last,
            "epoch": self.epoch, "history": [(ranks, list(done)) for ranks, done in self._history],
            "reader": reader, "readers": readers, "ranks": ranks, "done": self._done,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken, when the next iteration begins. A dataset that has grown since has its new
        pictures from the next epoch on.

        Raises `UsageError` where it is of another dataset, or of another order.
        """
        now = self.state_dict()
        for name in ("dataset", "seed", "drop_last"):
            if state[name] != now[name]:
                raise UsageError(f"the state is of another {name}: {state[name]} there, {now[name]} now")
        self.plan = self._whole.until(state["units"])
        self.epoch, self._done, self._goes_on = state["epoch"], state["done"], True
        self._history = [Dealt(ranks, tuple(done)) for ranks, done in state["history"]]
        self._state_of = (state["reader"], state["readers"]) if state["readers"] else None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        reader, readers, ranks = self._place()
        if get_worker_info() is not None:
            torch.set_num_threads(1)
        if not self._goes_on:
            self.plan, self._history, self._done = self._whole, [], 0
        elif self._state_of not in (None, (reader, readers)):
            raise UsageError(
                f"the state is of reader {self._state_of[0]} of {self._state_of[1]}, and this is {reader} of "
                f"{readers}: put the states of all readers together with merge_states"
            )
        self._goes_on = False
        order = EpochOrder(self._counts[: self.plan.units], self.seed, self.epoch)
        left = left_after(order.count, self._history, self.drop_last)
        share = skip(deal(left, readers, ranks, self.drop_last)[reader], self._done)
        for stretch in order.stretches(share):
            files = read_files(self.dataset, stretch.unit, self.fields)
            if len(files) != self._counts[stretch.unit]:
                raise JobError(
                    f"unit {stretch.unit} of {self.dataset} has {len(files)} pictures, not as many as it had"
                )
            positions = itertools.count(stretch.start)
            for portion in portions([files[place] for place in stretch.places], self.max_pixels):
                for file, x_CHW in zip(portion, self._decoded(portion, order, positions), strict=True):
                    self._done += 1
                    yield (file.key, x_CHW, values(file.fields)) if self.fields else (file.key, x_CHW)

    def _decoded(self, files: list[PictureFile], order: EpochOrder, positions: Iterator[int]) -> list[Tensor]:
        """What each file is asked for, in their order; files of like size together."""
        codec = self._codec()
        headers = [bitstream.unpack(file.data, codec.fingerprint, self.max_pixels).header for file in files]
        corners = [self._corner(order, next(positions), header) for header in headers]
        alike = [batch_key(header) for header in headers]
        if self.latents:
            y_hats = alike_together(files, alike, lambda _, some: codec.decode_latents(_data(some), self.max_pixels))
            return [self._cut(y.cpu(), corner, LATENT_STRIDE) for y, corner in zip(y_hats, corners, strict=True)]
        boxes = [self._box(header, corner) for header, corner in zip(headers, corners, strict=True)]
        pictures = alike_together(
            files, list(zip(alike, boxes, strict=True)),
            lambda key, some: codec.decompress_batch(_data(some), self.decoding, self.max_pixels, box=key[1]),
        )  # fmt: skip
        at = [(0, 0) if box else corner for box, corner in zip(boxes, corners, strict=True)]
        whole = (torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures)
        return [self._cut(x_CHW, corner, 1) for x_CHW, corner in zip(whole, at, strict=True)]

    def _codec(self) -> CorrDiffCodec:
        if self._loaded is None:
            device, precision = self._on
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() and get_worker_info() is None else "cpu"
            self._loaded = load_codec(self.codec, device, precision)
        return self._loaded

    def _corner(self, order: EpochOrder, position: int, header: Header) -> tuple[int, int]:
        """Row and column at which the crop of a picture begins."""
        if self.crop is None:
            return 0, 0
        rows, columns = max(header.height - self.crop, 0), max(header.width - self.crop, 0)
        return order.corner(position, rows, columns, LATENT_STRIDE if self.latents else 1)

    def _box(self, header: Header, corner: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """What is decoded of a tiled picture; None where it is the whole."""
        if self.crop is None or not header.tile:
            return None
        (y, x), width, height = corner, min(self.crop, header.width), min(self.crop, header.height)
        return x, y, width, height

    def _cut(self, x_CHW: Tensor, corner: tuple[int, int], stride: int) -> Tensor:
        """The crop of a picture or a latent, of which a position is so many pixels."""
        if self.crop is None:
            return x_CHW
        (y, x), side = corner, self.crop // stride
        return x_CHW[:, _mirrored(y // stride, side, x_CHW.shape[1])][
            :, :, _mirrored(x // stride, side, x_CHW.shape[2])
        ]


def _data(files: Sequence[PictureFile]) -> list[bytes]:
    return [file.data for file in files]


def _mirrored(start: int, count: int, size: int) -> Tensor:
    """Places of a row of `size`, from one on; beyond its end it comes backwards, and so on."""
    place = torch.arange(start, start + count) % (2 * size)
    return torch.minimum(place, 2 * size - 1 - place)


def merge_states(states: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What all readers of an epoch together have had, for any number of readers to go on with.

    Args:
        states: one `CompressedPictures.state_dict` of every loader worker of every rank.

    Raises `UsageError` where they are not of one epoch, or not all there.
    """
    by_reader = sorted(states, key=lambda state: int(state["reader"]))
    if not by_reader:
        raise UsageError("there are no states to merge")
    first = by_reader[0]
    same = [name for name in first if name not in ("reader", "done")]
    if any(state[name] != first[name] for state in by_reader for name in same):
        raise UsageError("the states are not of one epoch of the same readers")
    if [state["reader"] for state in by_reader] != list(range(first["readers"])):
        raise UsageError(f"{len(by_reader)} states are not those of each of {first['readers']} readers")
    dealt = (first["ranks"], [state["done"] for state in by_reader])
    return {**first, "history": [*first["history"], dealt], "reader": 0, "readers": 0, "done": 0}


def read_compressed(dataset: str, codec: str, config: DecompressConfig | None = None, fields: bool = False) -> Any:
    """A `ray.data.Dataset` with a row for each picture: `key`, and `image`, uint8 [H, W, 3]; with `fields`, a column
    for everything that travels with the pictures as well (`original_key`, where such a thing is called `key`).

    Starts Ray where it is not started, as Ray Data's own readers do. Raises `UsageError` where there is no finished
    dataset, or it is another codec's.
    """
    import ray

    job = open_dataset(dataset, codec, config or DecompressConfig())
    if not ray.is_initialized():
        ray.init()
    rows = [{"unit": unit, "members": ""} for unit in range(job.plan.units)]
    stages = pools(job.config.device, job.config.workers)
    return decoded(job, rows, stages, fields).flat_map(_rows, num_cpus=0)


def _rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"key": p.key, "image": p.pixels} for p in row["portion"].pictures]
    for each, picture in zip(rows, row["portion"].pictures, strict=True):
        for name, value in values(picture.fields).items():
            each[f"original_{name}" if name in ("key", "image") else name] = value
    return rows
