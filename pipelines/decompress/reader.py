"""Pictures straight out of a compressed dataset, for training on it without unpacking it first.

for key, picture in CompressedPictures("compressed", "codec"): ...     torch, in as many processes as you like
read_compressed("compressed", "codec").iter_batches()                  Ray Data
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from corrdiff.codec import CorrDiffCodec, Decoding, Precision
from corrdiff.codec_directory import load_codec
from corrdiff.format import bitstream
from pipelines.dataset.fields import values
from pipelines.decompress.config import DecompressConfig
from pipelines.decompress.stages import decode, decoded, open_dataset, portions, read_files
from pipelines.runtime.resources import pools


class CompressedPictures(IterableDataset[tuple[Any, ...]]):
    """Keys and decoded pictures, uint8 [3, H, W], of a finished compressed dataset; with `fields`, a dictionary of what
    travels with each picture as well: ending (`txt`) -> bytes, column -> value.

    Parts are dealt to the ranks of `torch.distributed`, where it is in use, and to the workers of a `DataLoader`; each
    picture comes once. Sizes differ: give the loader `batch_size=None`, or cut crops first.
    """

    def __init__(
        self, dataset: str, codec: str, decoding: Decoding = "corrected", seed: int | None = None,
        device: str = "cpu", precision: Precision | None = None,
        max_pixels: int = bitstream.MAX_PIXELS, fields: bool = False,
    ) -> None:  # fmt: skip
        """
        Args:
            dataset: what `corrdiff compress` wrote: a directory or any fsspec URI.
            codec: the codec that it was compressed with.
            decoding: "corrected" is the picture; "privileged" is D's alone, which needs one network pass and not one a
                step.
            seed: with it, parts and the pictures of a part come in an order of that seed and the epoch.
            max_pixels: larger pictures are an error.
            device: where the networks run; in the workers of a loader that means one codec each.
            fields: whether captions, labels and whatever else travels with the pictures comes with them.

        Raises:
            UsageError: no finished dataset, or another codec's.
        """
        job = open_dataset(dataset, codec, DecompressConfig())
        self.dataset, self.codec, self.plan = job.dataset, job.codec, job.plan
        self.decoding, self.seed, self.epoch, self.max_pixels = decoding, seed, 0, max_pixels
        self.fields = fields
        self._on = device, precision
        self._loaded: CorrDiffCodec | None = None

    def set_epoch(self, epoch: int) -> None:
        """Which order comes next; with loader workers that persist, before the loader is made."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        if worker:
            torch.set_num_threads(1)
        if self._loaded is None:
            self._loaded = load_codec(self.codec, *self._on)
        for unit in self._order(0, self.plan.units)[rank * workers + worker_id :: ranks * workers]:
            files = read_files(self.dataset, unit, self.fields)
            shuffled = [files[i] for i in self._order(unit + 1, len(files))]
            for portion in portions(shuffled, self.max_pixels):
                for picture in decode(self._loaded, portion, self.decoding, self.max_pixels):
                    x_CHW: Tensor = torch.from_numpy(picture.pixels).permute(2, 0, 1)
                    yield (picture.key, x_CHW, values(picture.fields)) if self.fields else (picture.key, x_CHW)

    def _order(self, what: int, count: int) -> list[int]:
        if self.seed is None:
            return list(range(count))
        order: list[int] = np.random.default_rng([self.seed, self.epoch, what]).permutation(count).tolist()
        return order


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
