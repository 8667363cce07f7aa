"""A small compressed dataset of real files, written without Ray."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np

from corrdiff import load_codec
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.codec_directory import read_config
from corrdiff.images import save_png
from corrdiff.picture import Picture
from pipelines.compress.chunk import Whole
from pipelines.compress.finish import _finish
from pipelines.compress.write import write_unit
from pipelines.dataset import format as compressed
from pipelines.dataset.format import Plan, Stage, columns
from pipelines.files import storage
from pipelines.files.tar import add_member
from pipelines.inputs.samples import Fields
from pipelines.shards.format import Index, Manifest, Shard, write_manifest
from pipelines.train.crops import Crops
from tests.support.compression import coded
from tests.support.drawn import draw

SIZES = [(40, 56), (40, 56), (130, 150), (20, 24), (40, 56), (97, 64), (300, 400)]
"""Of the pictures k0 to k6; the last one is tiled."""

UNITS: list[list[int | None]] = [[0, 1, None, 2], [None], [3, None, 4, 5, 6]]
"""Numbers of the pictures of each unit; None is a failure."""


def encoded(codec: CorrDiffCodec, number: int) -> bytes:
    """The file of one of the pictures."""
    settings = Settings(steps=1, tile=256 if number == len(SIZES) - 1 else None)
    return codec.compress_batch([draw(*SIZES[number], seed=number)], settings)[0].data


def write_dataset(uri: str, codec_dir: str) -> str:
    """Write a finished dataset; a caption, its key, travels with each picture. Returns its URI."""
    codec = load_codec(codec_dir, precision="fp32")
    plan = Plan({"codec": read_config(codec_dir)[1]}, (Stage("_plan/1", len(UNITS), sum(map(len, UNITS))),))
    compressed.claim_plan(uri, plan)
    for unit, numbers in enumerate(UNITS):
        done = []
        for place, number in enumerate(numbers):
            key = f"k{number}" if number is not None else f"failed-{unit}"
            data = encoded(codec, number) if number is not None else None
            each = coded(place, data, key)._replace(fields=Fields((("txt", key.encode()),)))
            if number is not None:
                each.row.update(height=SIZES[number][0], width=SIZES[number][1])
            done.append(each)
        write_unit(uri, unit, Whole(done, {}, {}), columns())
    _finish(uri, plan)
    return uri


def as_shards(crops: Crops, squares: list[list[Picture]], out: Path) -> Crops:
    """The same squares as PNGs, in shards of the same names."""
    shards = []
    for shard, pictures in zip(crops.manifest.shards, squares, strict=True):
        buffer, offsets, sizes, digests = io.BytesIO(), list[int](), list[int](), list[bytes]()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for number, picture in enumerate(pictures):
                png = save_png(picture)
                offsets.append(add_member(tar, f"{shard.key(number)}.png", png))
                sizes.append(len(png))
                digests.append(hashlib.sha256(png).digest())
        table = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
        index = Index(np.array(offsets), np.array(sizes), table).to_bytes()
        storage.write_bytes(str(out / shard.name), buffer.getvalue())
        storage.write_bytes(str(out / shard.index_name), index)
        digest = hashlib.sha256(index).hexdigest()
        shards.append(Shard(shard.name, len(pictures), shard.bytes, "", digest))
    manifest = Manifest(crops.manifest.crop, tuple(shards))
    write_manifest(str(out), "a hash", manifest)
    return Crops(str(out), manifest)
