"""The crops that a run is trained on: those of a directory of shards, or squares of a compressed dataset's pictures.

STORAGE/NAME/crops-192/manifest.json   of a compressed dataset, how many squares of that side each of its parts has

A square is decoded when it is its turn, by D alone, of a tiled picture from the tiles under it. Squares are dealt as
the crops of shards are: by the same order, with the same cursor to resume from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from corrdiff.codec_directory import load_codec, read_config
from corrdiff.errors import JobError, UsageError
from corrdiff.format import bitstream
from corrdiff.format.bitstream import BitstreamError
from corrdiff.picture import Picture
from pipelines.dataset.format import check_codec, is_dataset
from pipelines.dataset.parts import PictureFile, read_pictures, read_tables
from pipelines.dataset.summary import read_complete
from pipelines.dataset.units import read_records
from pipelines.files import storage
from pipelines.shards import crop_png
from pipelines.shards.cut import crop_positions
from pipelines.shards.format import MANIFEST, Manifest, Shard, read_crops, read_manifest, write_manifest
from pipelines.train.config import TrainConfig

if TYPE_CHECKING:
    from corrdiff.codec import CorrDiffCodec

PNG_BYTES_A_PIXEL = 1.5
"""By which squares count where windows are cut by bytes."""


class Crops(NamedTuple):
    """What a run is trained on."""

    uri: str
    """Of the shards, or of the compressed dataset."""
    manifest: Manifest
    codec: str = ""
    """URI of the codec of a compressed dataset; empty of shards."""


class Run(NamedTuple):
    """Crops of one shard that follow each other."""

    stored: list[int]
    """Bytes of storage for each of them."""
    pixels: Callable[[int], Picture]
    """Decodes one."""


def open_crops(config: TrainConfig) -> Crops:
    """What `--shards` names; of a compressed dataset it is written down what squares there are, once for a run.

    Raises `UsageError` where it names neither, or the codec is not the one that wrote the dataset.
    """
    uri = storage.absolute(config.shards)
    if not is_dataset(uri):
        return Crops(uri, read_manifest(uri))
    if config.shards_codec is None:
        raise UsageError(f"{uri} is a compressed dataset: give --shards-codec, the codec that wrote it")
    codec, side = storage.absolute(config.shards_codec), 3 * config.crop // 2
    written = storage.join(storage.absolute(config.storage), config.name, f"crops-{side}")
    if not storage.exists(storage.join(written, MANIFEST)):
        plan, _ = read_complete(uri)
        fingerprint = read_config(codec)[1]
        check_codec(uri, plan, codec, fingerprint)
        write_manifest(written, fingerprint, Manifest(side, _squares_of(uri, plan.units, side)))
    return Crops(uri, read_manifest(written), codec)


def _squares_of(uri: str, units: int, side: int) -> tuple[Shard, ...]:
    """Parts that have squares of a side, and how many."""
    found = []
    for record, table in read_tables(uri, read_records(uri, range(units))):
        rows = table.select(["status", "height", "width"]).to_pylist()
        count = sum(len(_corners(r["height"], r["width"], side)) for r in rows if r["status"] == "ok")
        if count:
            size = int(PNG_BYTES_A_PIXEL * side**2 * count)
            found.append(Shard(record.tar.name, count, size, record.tar.sha256, ""))
    if not found:
        raise UsageError(f"no picture of {uri} is as large as {side} pixels square: give a smaller --crop")
    return tuple(found)


def _corners(height: int, width: int, side: int) -> list[tuple[int, int]]:
    """Row and column at which each square of a picture begins."""
    return [(y, x) for y in crop_positions(height, side, side) for x in crop_positions(width, side, side)]


def read_run(uri: str, codec: str, shard: Shard, crop: int, first: int, last: int) -> Run:
    """Crops [first, last) of a shard, or of a part where there is a codec.

    Raises `JobError` where anything is missing, cut short or changed.
    """
    if not codec:
        data = read_crops(uri, shard, first, last)
        return Run(list(map(len, data)), lambda i: crop_png.decode(data[i]))
    files = read_pictures(uri, shard.name, shard.sha256)
    squares = _decoded(_codec(codec), files, crop, first, last)
    if len(squares) < last - first:
        raise JobError(f"part {uri}/{shard.name} has fewer squares of {crop} pixels than were counted: {shard.count}")
    size = sum(len(file.data) for file in files) // shard.count
    return Run([size] * len(squares), squares.__getitem__)


def _decoded(codec: CorrDiffCodec, files: list[PictureFile], side: int, first: int, last: int) -> list[Picture]:
    """Of the squares of some pictures, one picture after the other, those from one on up to another."""
    squares, number = list[Picture](), 0
    for file in files:
        try:
            header = bitstream.unpack(file.data, codec.fingerprint).header
            corners = _corners(header.height, header.width, side)
            wanted = corners[max(first - number, 0) : max(last - number, 0)]
            number += len(corners)
            if wanted and header.tile:
                squares += [codec.decompress(file.data, "privileged", box=(x, y, side, side)) for y, x in wanted]
            elif wanted:
                picture = codec.decompress(file.data, "privileged")
                squares += [np.ascontiguousarray(picture[y : y + side, x : x + side]) for y, x in wanted]
        except BitstreamError as error:
            raise JobError(f"picture '{file.key}': {error}") from None
    return squares


@functools.lru_cache(maxsize=1)
def _codec(uri: str) -> CorrDiffCodec:
    """In the processes that read, once each; on a CPU, for GPUs are for training."""
    return load_codec(uri)


def read_some(crops: Crops, shards: tuple[Shard, ...], count: int) -> list[Picture]:
    """The first crops of each of some shards, `count` in all or, where they do not divide, a few more.

    Raises `JobError` as `read_run`.
    """
    each = -(-count // len(shards))
    runs = (read_run(crops.uri, crops.codec, shard, crops.manifest.crop, 0, min(each, shard.count)) for shard in shards)
    return [run.pixels(i) for run in runs for i in range(len(run.stored))]
