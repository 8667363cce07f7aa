"""`--target-bpp` and `--target-psnr`: from a sample of the pictures, the rule by which each finds its quality.

    a few pictures of some units  --D at every level-->         curves
    fewer of them                 --encoded at three levels-->  what factors and diffusion add to D's bytes and PSNR
    both                          --fit-->                      rule

The sample grows until the mean is known well enough. The rule is written down (OUT/rate.json) and the first one counts,
so that a job that goes on, on whatever machines, gives the pictures the qualities that it would have had.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import random
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from corrdiff import metrics, rate_control
from corrdiff.codec import Preview
from corrdiff.codec_directory import read_config
from corrdiff.config import QUALITIES, QUALITY_PARTS
from corrdiff.errors import JobError, UsageError, is_out_of_memory
from corrdiff.picture import Picture
from corrdiff.rate_control import Curve, Means, Point
from pipelines.compress.chunk import Chunk, Opened
from pipelines.compress.claim import CompressJob
from pipelines.compress.config import CompressConfig
from pipelines.compress.rate import Rate, pixels_and_cells
from pipelines.compress.read import open_units
from pipelines.dataset.format import RATE
from pipelines.display.progress import console
from pipelines.files import storage
from pipelines.files.records import read_record
from pipelines.runtime.resources import pools
from pipelines.runtime.session import ray_errors
from pipelines.runtime.stages import codec_in_actor

FIRST_UNITS = 64
"""Each further round doubles the sample."""
PICTURES_OF_A_UNIT = 8
"""Of a unit not all pictures are looked at, but about so many, where all units then still have MOST_PICTURES."""
MOST_PICTURES = 8192
ENOUGH = 0.008
"""Standard error of the mean, as a share of it; 2% are two and a half of them."""
IN_FULL = 24
"""So many pictures are encoded, at least, where there are as many."""
FULL_AT = 0, 4, 7
"""Levels at which they are; between these is interpolated."""
TOLERANCE = 0.02


class Sampled(NamedTuple):
    """What one picture would become."""

    unit: int
    place: int
    pixels: int
    cells: int
    previews: list[Preview]
    """At every level."""
    more_bytes: tuple[int, ...] = ()
    """Of the file, and `more_db` of the picture, than its preview said, at `FULL_AT`; of pictures that were encoded."""
    more_db: tuple[float, ...] = ()


def find_rate(job: CompressJob) -> Rate:
    """The rule of this compression: the one that is written down, or a new one from a sample of its pictures.

    Raises `UsageError` where no qualities reach the target, `JobError` where no picture can be opened.
    """
    uri = storage.join(job.out, RATE)
    try:
        return read_record(uri, Rate)
    except FileNotFoundError:
        rate = _find(job)
    created = storage.create_bytes(uri, storage.sealed(dataclasses.asdict(rate)))
    return rate if created else read_record(uri, Rate)


def _find(job: CompressJob) -> Rate:
    units, config = job.plan.units, job.config
    order = random.Random(0).sample(range(units), units)
    every = max(1, min(config.unit // PICTURES_OF_A_UNIT, config.unit * units // MOST_PICTURES))
    in_full = {unit: -(-IN_FULL // min(units, IN_FULL)) for unit in order[:IN_FULL]}
    sampled: list[Sampled] = []
    parts = 1 if read_config(job.codec)[0].file_version == 1 else QUALITY_PARTS
    console.print("looking at some pictures in every quality, for the target")
    end, error = 0, math.inf
    while end < units and error > ENOUGH:
        begin, end = end, min(units, 2 * end or FIRST_UNITS)
        sampled += _look(job, order[begin:end], every, in_full)
        if sampled:
            sampled.sort()
            rate = fit(sampled, config, parts)
            error = relative_error(sampled, rate, end / units / every, config)
            console.print(f"{len(sampled):,} pictures sampled for the target: the mean is known to {2 * error:.1%}")
    if not sampled:
        raise JobError(f"not one picture of {units} units could be opened")
    _check_in_reach(sampled, rate, config)
    console.print(f"expected: {rate.bpp:.4f} bpp, {rate.psnr_db:.2f} dB")
    return rate


def fit(sampled: Sequence[Sampled], config: CompressConfig, parts: int) -> Rate:
    """The rule that meets the target on these pictures, of which some were encoded."""
    full = [s for s in sampled if s.more_bytes]
    a_cell = statistics.fmean(statistics.fmean(s.more_bytes) / s.cells for s in full) if full else 0.0
    offsets = np.mean([s.more_db for s in full], axis=0) if full else np.zeros(len(FULL_AT))
    rate = Rate(0.0, 0, a_cell, np.interp(range(QUALITIES), FULL_AT, offsets).tolist(), len(sampled), 0.0, 0.0)
    curves = [_curve(s, rate) for s in sampled]
    choice = rate_control.fit(curves, lambda m: operator.sub(*_aim(m, config)), parts)
    return dataclasses.replace(rate, **choice._asdict(), **rate_control.means(curves, choice)._asdict())


def _aim(m: Means, config: CompressConfig) -> tuple[float, float]:
    """What is, and what should be."""
    if config.target_bpp is not None:
        return m.bpp, config.target_bpp
    assert config.target_psnr is not None
    return m.psnr_db, config.target_psnr


def _curve(s: Sampled, rate: Rate) -> Curve:
    return Curve(s.pixels, [rate.point(p, level, s.pixels, s.cells) for level, p in enumerate(s.previews)])


def relative_error(sampled: Sequence[Sampled], rate: Rate, share: float, config: CompressConfig) -> float:
    """Standard error of the mean that is aimed at, as a share of it.

    Units were drawn, of which `share` of all pictures come; pictures of one unit may be alike (ratio estimate of
    clusters; Cochran, Sampling Techniques, 1977, section 9.7).
    """
    if share >= 1:
        return 0.0
    sums: defaultdict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for s in sampled:
        points = _curve(s, rate).points
        point = rate_control.point_at(dict(enumerate(points)), rate_control.chosen_quality(points, rate.choice))
        value, weight = (point.bpp * s.pixels, s.pixels) if config.target_bpp is not None else (point.psnr_db, 1)
        sums[s.unit][0] += value
        sums[s.unit][1] += weight
    if len(sums) < 2:
        return math.inf
    values, weights = zip(*sums.values(), strict=True)
    ratio = sum(values) / sum(weights)
    squares = math.fsum((v - ratio * w) ** 2 for v, w in zip(values, weights, strict=True))
    variance = (1 - share) * len(sums) / (len(sums) - 1) * squares
    return math.sqrt(variance) / math.fsum(values)


def _check_in_reach(sampled: Sequence[Sampled], rate: Rate, config: CompressConfig) -> None:
    curves = [_curve(s, rate) for s in sampled]
    ends = [_aim(rate_control.means(curves, level), config) for level in (0, QUALITIES - 1)]
    (least, wanted), (most, _) = ends
    if not (1 - TOLERANCE) * least <= wanted <= (1 + TOLERANCE) * most:
        name = "bpp" if config.target_bpp is not None else "psnr"
        raise UsageError(
            f"--target-{name} {wanted} is out of reach: with this codec these pictures come to between {least:.4g} and "
            f"{most:.4g}"
        )


# --- looking at pictures, on Ray


def _look(job: CompressJob, numbers: Sequence[int], every: int, in_full: dict[int, int]) -> list[Sampled]:
    """Each `every`-th picture of some units; so many of a unit as `in_full` says are encoded too."""
    stages = pools(job.config.device, job.config.workers)
    dataset = open_units(numbers, job, stages, every).map(
        Sampler, fn_constructor_args=(job.codec, job.config, stages.device, in_full, job.fingerprint), **stages.networks
    )
    with ray_errors():
        return [sampled for row in dataset.iter_rows() for sampled in row["sampled"]]


class Sampler:
    """A Ray Data actor: a codec that looks at pictures."""

    def __init__(
        self, codec: str, config: CompressConfig, device: str, in_full: dict[int, int], fingerprint: str = ""
    ) -> None:
        self.codec = codec_in_actor(codec, device, config.precision, fingerprint)
        self.settings = config.settings()
        self.in_full = in_full

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk: Chunk[Opened] = row["chunk"]
        found: list[Sampled] = []
        for picture in chunk.pictures:
            if picture.pixels is not None:
                try:
                    found.append(self._look_at(picture.pixels, chunk.unit, picture.place))
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):  # else it will be a failure
                        raise
        return {"sampled": found}

    def _look_at(self, image: Picture, unit: int, place: int) -> Sampled:
        latents = self.codec.latents([image], self.settings)
        previews = [self.codec.preview([image], latents, self.settings, [q])[0] for q in range(QUALITIES)]
        sampled = Sampled(unit, place, *pixels_and_cells(image, self.codec), previews)
        if place >= self.in_full.get(unit, 0):
            return sampled
        more_bytes, more_db = [], []
        for quality in FULL_AT:
            encoded = self.codec.compress_batch([image], dataclasses.replace(self.settings, quality=quality))[0]
            mse = metrics.mse(image, encoded.reconstruction)
            preview = previews[quality]
            more_bytes.append(len(encoded.data) - preview.bytes)
            more_db.append(Point.of(0, 1, mse).psnr_db - Point.of(0, 1, preview.mse).psnr_db)
        return sampled._replace(more_bytes=tuple(more_bytes), more_db=tuple(more_db))
