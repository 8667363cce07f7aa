"""`--dry-run`: what a compression would take, from a few of its pictures."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from corrdiff.codec_directory import load_codec
from corrdiff.errors import UsageError
from corrdiff.images import ImageError, open_image
from pipelines.compress.config import CompressConfig
from pipelines.inputs import units
from pipelines.inputs.units import Unit

SAMPLE = 3
"""Units that are looked at, of shards and of others."""


class Estimate(NamedTuple):
    """What `--dry-run` says."""

    pictures: int
    input_bytes: int
    sampled: int
    seconds: float
    output_bytes: int
    left_out: dict[str, int]
    """Reason -> files that are there and would not be taken; what is in tars is not counted."""


class Chosen(NamedTuple):
    """A few of many units, and how many there were."""

    shards: list[Unit]
    """Of those that nobody knows the pictures of before they are read."""
    others: list[Unit]
    number_of_shards: int
    number_of_others: int
    pictures_of_others: int


def choose_units(every: Iterable[Unit], sample: int = SAMPLE) -> Chosen:
    """Draw `sample` shards and as many other units from a list of any length, each as likely as another.

    Only the chosen are in memory (a reservoir; Vitter, Random Sampling with a Reservoir, 1985).
    """
    chance = random.Random(0)
    shards: list[Unit] = []
    others: list[Unit] = []
    number_of_shards, number_of_others, pictures = 0, 0, 0
    for unit in every:
        if not unit.counted:
            number_of_shards += 1
            kept, seen = shards, number_of_shards
        else:
            number_of_others += 1
            kept, seen = others, number_of_others
            pictures += unit.pictures
        if len(kept) < sample:
            kept.append(unit)
        elif chance.random() < sample / seen:
            kept[chance.randrange(sample)] = unit
    return Chosen(shards, others, number_of_shards, number_of_others, pictures)


def estimate(images: str, codec: str, config: CompressConfig, workers: int) -> Estimate:
    """Count the pictures and time a few of them, to say what the whole would take; with a PSNR for a target, at the
    default quality.

    Raises `UsageError` where there are none, or none of the few can be opened.
    """
    loaded = load_codec(codec)
    left_out: Counter[str] = Counter()
    chosen = choose_units(units.plan_units(images, config.column, config.unit, left_out, config.travels()))
    if not chosen.shards and not chosen.others:
        raise UsageError(units.nothing_at(images, left_out))
    count = chosen.pictures_of_others
    if chosen.shards:
        in_shards = [sum(1 for _ in units.read_pictures(unit)) for unit in chosen.shards]
        count += round(chosen.number_of_shards * sum(in_shards) / len(chosen.shards))
    seconds, read, written, good = 0.0, 0, 0, 0
    for unit in [*chosen.shards, *chosen.others]:
        for found in itertools.islice(units.read_pictures(unit), 1):
            started = time.monotonic()
            try:
                image = open_image(found.data or b"", config.max_pixels)
            except ImageError:
                continue
            size = len(loaded.compress_batch([image.pixels], config.settings())[0].data)
            pixels = image.pixels.shape[0] * image.pixels.shape[1]
            written += size if config.target_bpp is None else round(config.target_bpp * pixels / 8)
            read += len(found.data or b"")
            seconds += time.monotonic() - started
            good += 1
    if not good:
        looked_at = len(chosen.shards) + len(chosen.others)
        raise UsageError(f"none of {looked_at} sampled pictures at {images} could be opened")
    scale = count / good
    return Estimate(count, round(read * scale), good, seconds * scale / workers, round(written * scale), dict(left_out))
