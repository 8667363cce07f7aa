"""`--dry-run`: what a compression would take, from a few of its pictures."""

from __future__ import annotations

import itertools
import random
import time
from typing import NamedTuple

from corrdiff.codec_directory import load_codec
from corrdiff.errors import UsageError
from corrdiff.images import ImageError, open_image
from pipelines.compress.config import CompressConfig
from pipelines.inputs import units
from pipelines.inputs.units import Unit


class Estimate(NamedTuple):
    """What `--dry-run` says."""

    pictures: int
    input_bytes: int
    sampled: int
    seconds: float
    output_bytes: int


def estimate(images: str, codec: str, config: CompressConfig, workers: int, sample: int = 3) -> Estimate:
    """Count the pictures and time a few of them, to say what the whole would take; with a PSNR for a target, at the
    default quality.

    Raises `UsageError` where there are none, or none of the few can be opened.
    """
    loaded = load_codec(codec)
    settings = config.settings()
    chance = random.Random(0)
    shards: list[Unit] = []
    others: list[Unit] = []
    number, known, number_of_shards = 0, 0, 0
    for number, unit in enumerate(units.plan_units(images, config.column, config.unit), start=1):
        known += unit.pictures
        number_of_shards += unit.kind == "shard"
        few, of = (shards, number_of_shards) if unit.kind == "shard" else (others, number - number_of_shards)
        if len(few) < sample:
            few.append(unit)
        elif chance.random() < sample / of:
            few[chance.randrange(sample)] = unit
    if not number:
        raise UsageError(units.nothing_at(images))
    in_shards = [sum(1 for _ in units.read_pictures(unit)) for unit in shards]
    count = known + (round(number_of_shards * sum(in_shards) / len(shards)) if shards else 0)
    seconds, read, written, good = 0.0, 0, 0, 0
    for unit in [*shards, *others]:
        for found in itertools.islice(units.read_pictures(unit), 1):
            started = time.monotonic()
            try:
                image = open_image(found.data or b"", config.max_pixels)
            except ImageError:
                continue
            size = len(loaded.compress_batch([image.pixels], settings)[0].data)
            pixels = image.pixels.shape[0] * image.pixels.shape[1]
            written += size if config.target_bpp is None else round(config.target_bpp * pixels / 8)
            read += len(found.data or b"")
            seconds += time.monotonic() - started
            good += 1
    if not good:
        raise UsageError(f"none of {len(shards) + len(others)} sampled pictures at {images} could be opened")
    scale = count / good
    return Estimate(count, round(read * scale), good, seconds * scale / workers, round(written * scale))
