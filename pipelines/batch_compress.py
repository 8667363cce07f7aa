"""A dataset -> bitstreams and a table of metrics: the stages of compress_stages.py as one pipeline on Ray Data.

What is to be done is written down first, in units (compressed.py, units.py). A unit's chunks may come out of the
pipeline in any order; when all are there the unit is written, by a task of its own. Whatever dies, units that have a
record are done, and the same command does the others.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

from corrdiff.checkpoint import load_codec, read_config
from corrdiff.errors import JobError, UsageError
from corrdiff.images import EXTENSIONS, ImageError, open_image
from pipelines import compress_report, compressed, opening, parts, pictures, storage, target, units
from pipelines.compress_report import Summary
from pipelines.compress_stages import STAGES, Coder, Encoder
from pipelines.compressed import Plan, Record
from pipelines.config import CompressConfig, differences
from pipelines.opening import Chunk
from pipelines.parts import Done
from pipelines.progress import console
from pipelines.ray_session import own_errors, pools, ray_session
from pipelines.target import Rate
from pipelines.tracking import Tracker
from pipelines.units import Unit

SEGMENT_UNITS = 4096
"""Units of one Ray Data execution; a large dataset is a chain of them."""

WRITES_AT_ONCE = 8
PACE_EVERY_S = 10.0
PLAN_TOKEN_DIGITS = 12


class Progress(NamedTuple):
    """So far, over all runs."""

    units_done: int
    units_total: int
    pictures_done: int
    pictures_total: int | None
    megapixels: float
    bytes: int
    failures: int


class Estimate(NamedTuple):
    """What `--dry-run` says."""

    pictures: int
    input_bytes: int
    sampled: int
    seconds: float
    output_bytes: int


def compress_dataset(images: str, out: str, codec: str, config: CompressConfig) -> Iterator[Progress | Summary]:
    """Compress pictures in parallel on Ray; yields progress, and the summary at the end.

    Raises:
        UsageError: no pictures, no codec, or `out` holds another compression.
        JobError: storage failed for long, more pictures failed than `max_failures`, or all did.
    """
    out, codec = storage.absolute(out), storage.absolute(codec)
    fingerprint = read_config(codec)[1]
    plan = _claim(images, out, fingerprint, config)
    summary = compress_report.read_summary(out)
    if summary is None:
        with ray_session():
            summary = yield from _compress(images, out, codec, plan, fingerprint, config)
    yield summary
    if summary.pictures and summary.failures == summary.pictures:
        raise JobError(f"not one of {summary.pictures} pictures could be compressed: {summary.failure_reasons}")


def _compress(
    images: str, out: str, codec: str, plan: Plan, fingerprint: str, config: CompressConfig
) -> Generator[Progress, None, Summary]:
    """Everything that is missing, up to the summary, as one run in MLflow."""
    tally = Tally(plan, compressed.read_records(out, compressed.finished_units(out)))
    yield tally.progress()
    tracker = compress_report.begin(images, out, codec, fingerprint, config, console.print)
    status = "FAILED"
    try:
        rate = target.find_rate(out, codec, plan, config) if config.has_target else None
        if rate is not None:
            found = {k: float(getattr(rate, k)) for k in ("slope", "start", "sampled", "bpp", "psnr_db")}
            tracker.metrics({f"target/{k}": v for k, v in found.items()}, step=0)
        yield from _run_all(out, codec, plan, config, rate, tally, tracker)
        summary = compress_report.finish(out, codec, plan, tracker)
        status = "FINISHED"
        return summary
    finally:
        tracker.close(status)


def _run_all(
    out: str, codec: str, plan: Plan, config: CompressConfig, rate: Rate | None, tally: Tally, tracker: Tracker
) -> Iterator[Progress]:
    """All units without a record; the pace goes to MLflow now and then, and the stages' shares at the end."""
    missing = [unit for unit in range(plan.units) if unit not in tally.done]
    started = since = time.monotonic()
    pictures, pixels = 0, 0
    for i in range(0, len(missing), SEGMENT_UNITS):
        for progress in _run(missing[i : i + SEGMENT_UNITS], out, codec, plan, config, rate, tally):
            yield progress
            seconds = time.monotonic() - since
            if seconds >= PACE_EVERY_S:
                pace = {
                    "pace/pictures_per_s": (tally.new_pictures - pictures) / seconds,
                    "pace/megapixels_per_s": (tally.new_pixels - pixels) / seconds / 1e6,
                }
                tracker.metrics(pace | {"pace/failures": float(tally.failures)}, step=tally.pictures)
                since, pictures, pixels = time.monotonic(), tally.new_pictures, tally.new_pixels
    seconds = time.monotonic() - started
    if missing:
        values = {"megapixels_per_s": tally.new_pixels / seconds / 1e6, "pictures_per_s": tally.new_pictures / seconds}
        at_work = {f"at_work/{stage}": tally.seconds[stage] / seconds for stage in STAGES}
        tracker.metrics(values | at_work, step=tally.pictures)


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
        raise UsageError(_nothing_at(images))
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


def _nothing_at(images: str) -> str:
    return (
        f"no pictures at {images} (looked for {', '.join(EXTENSIONS)} and .tar; for Parquet tables give --column with "
        "the column of paths or bytes)"
    )


def _claim(images: str, out: str, fingerprint: str, config: CompressConfig) -> Plan:
    """The plan of `out`: the one that is there if it is of the same codec and settings, else a new one."""
    images = images if images.startswith(pictures.SAMPLE_SCHEME) else storage.absolute(images)
    if out == images or out.startswith(f"{images}/"):
        raise UsageError(f"{out} lies among the pictures of {images}; choose another directory")
    identity = {"codec": fingerprint, "images": images, **config.identity()}
    plan = compressed.read_plan(out)
    if plan is None:
        directory = f"{compressed.PLANS}/{uuid.uuid4().hex[:PLAN_TOKEN_DIGITS]}"
        count = units.write_plan(storage.join(out, directory), units.plan_units(images, config.column, config.unit))
        if not count.units:
            raise UsageError(_nothing_at(images))
        plan = Plan(identity, directory, count.units, count.pictures)
        if compressed.create_plan(out, plan):
            return plan
        written = plan
        plan = compressed.read_plan(out)
        assert plan is not None
        if plan == written:  # what was said about it got lost on the way
            return plan
        storage.remove_tree(storage.join(out, directory))  # another job was quicker
    said = differences(plan.identity, identity)
    if said:
        raise UsageError(f"{out} holds another compression ({said}); choose another directory")
    return plan


class Tally:
    """What is done, over all runs and in this one."""

    def __init__(self, plan: Plan, records: Iterable[Record]) -> None:
        self.plan = plan
        self.done: set[int] = set()
        self.pictures = self.failures = self.bytes = self.pixels = 0
        self.new_pixels = self.new_pictures = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.first_failure = ""
        for record in records:
            self.done.add(record.unit)
            self._count(record.pictures, record.failures, record.bytes, record.pixels)

    def add(self, chunk: Chunk) -> None:
        """Pictures that came out of the pipeline."""
        rows = [done.row for done in chunk.pictures]
        good = [row for row in rows if row["status"] == "ok"]
        if len(good) < len(rows) and not self.first_failure:
            self.first_failure = next(f"{r['source']}: {r['error']}" for r in rows if r["status"] != "ok")
        pixels = sum(row["width"] * row["height"] for row in good)
        self._count(len(rows), len(rows) - len(good), sum(row["bytes"] for row in good), pixels)
        self.new_pictures += len(rows)
        self.new_pixels += pixels
        for stage, seconds in chunk.seconds.items():
            self.seconds[stage] += seconds

    def write(self, record: Record) -> None:
        self.done.add(record.unit)
        self.seconds["write"] += record.seconds["write"]

    def _count(self, pictures: int, failures: int, size: int, pixels: int) -> None:
        self.pictures += pictures
        self.failures += failures
        self.bytes += size
        self.pixels += pixels

    def progress(self) -> Progress:
        return Progress(
            len(self.done), self.plan.units, self.pictures, self.plan.pictures, self.pixels / 1e6, self.bytes,
            self.failures,
        )  # fmt: skip


class Assembly:
    """Units of which some chunks have come."""

    def __init__(self) -> None:
        self._chunks: dict[int, list[Chunk]] = {}

    def add(self, chunk: Chunk) -> tuple[list[Done], dict[str, float]] | None:
        """The unit's pictures and what the stages took for them, where these were the last."""
        chunks = self._chunks.setdefault(chunk.unit, [])
        chunks.append(chunk)
        total = next((c.total for c in chunks if c.total is not None), None)
        if sum(len(c.pictures) for c in chunks) != total:
            return None
        del self._chunks[chunk.unit]
        seconds: collections.Counter[str] = collections.Counter()
        for c in chunks:
            seconds.update(c.seconds)
        return [done for c in chunks for done in c.pictures], dict(seconds)


def _run(
    numbers: list[int], out: str, codec: str, plan: Plan, config: CompressConfig, rate: Rate | None, tally: Tally
) -> Iterator[Progress]:
    """Take units through the stages; yields after each chunk and each unit."""
    import ray

    stages = pools(config.device, config.workers)
    dataset = (
        opening.open_units(numbers, storage.join(out, plan.directory), config, stages)
        .map(Encoder, fn_constructor_args=(codec, config, stages.device, rate), **stages.networks)
        .map(Coder, fn_constructor_args=(codec, config.lpips_weights), **stages.coders)
    )  # fmt: skip
    dataset.context.target_max_block_size = 1  # a chunk is a block, and goes on as soon as it is there
    write = ray.remote(parts.write_unit).options(num_cpus=0)
    assembly = Assembly()
    writes: list[Any] = []
    with own_errors(), _all_written(writes):
        for row in dataset.iter_rows():
            tally.add(row["chunk"])
            whole = assembly.add(row["chunk"])
            if whole is not None:
                writes.append(write.remote(out, row["chunk"].unit, *whole))
            _check_failures(tally, config)
            while len(writes) > WRITES_AT_ONCE:
                done, writes[:] = ray.wait(writes)
                tally.write(ray.get(done[0]))
            yield tally.progress()
        while writes:
            tally.write(ray.get(writes.pop()))
            yield tally.progress()


@contextlib.contextmanager
def _all_written(writes: list[Any]) -> Iterator[None]:
    """Units that are being written when a run breaks off are written to their end."""
    import ray

    try:
        yield
    finally:
        ray.wait(writes, num_returns=len(writes)) if writes else None


def _check_failures(tally: Tally, config: CompressConfig) -> None:
    if config.max_failures is not None and tally.failures > config.max_failures:
        raise JobError(
            f"{tally.failures} of the first {tally.pictures} pictures failed, more than --max-failures "
            f"{config.max_failures}; the first: {tally.first_failure}"
        )
