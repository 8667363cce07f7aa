"""A dataset -> bitstreams and a table of metrics: the stages of compress_stages.py as one pipeline on Ray Data.

What is to be done is written down first, in units (compressed.py, units.py). A unit's chunks may come out of the
pipeline in any order; when all are there the unit is written, by a task of its own. Whatever dies, units that have a
record are done, and the same command does the others.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Generator, Iterator
from typing import Any

from corrdiff.codec_directory import read_config
from corrdiff.errors import JobError, UsageError
from pipelines.compress import rate_target as target
from pipelines.compress import read as opening
from pipelines.compress import report as compress_report
from pipelines.compress import write as parts
from pipelines.compress.config import CompressConfig
from pipelines.compress.encode_code import STAGES, Coder, Encoder
from pipelines.compress.rate_target import Rate
from pipelines.compress.report import Summary
from pipelines.compress.tally import Assembly, Progress, Tally
from pipelines.dataset import format as compressed
from pipelines.dataset.format import Plan
from pipelines.display.progress import console
from pipelines.files import storage
from pipelines.files.records import differences
from pipelines.inputs import units
from pipelines.runtime.resources import pools
from pipelines.runtime.session import ray_errors, ray_session
from pipelines.tracking.run_log import RunLog
from pipelines.tracking.tracker import Tracker, tracking_uri

SEGMENT_UNITS = 4096
"""Units of one Ray Data execution; a large dataset is a chain of them."""

WRITES_AT_ONCE = 8
PACE_EVERY_S = 10.0
PLAN_TOKEN_DIGITS = 12


def compress_dataset(images: str, out: str, codec: str, config: CompressConfig) -> Iterator[Progress | Summary]:
    """Compress pictures in parallel on Ray; yields progress, and the summary at the end.

    Raises:
        UsageError: no pictures, no codec, or `out` holds another compression.
        JobError: storage failed for long, more pictures failed than `max_failures`, or all did.
    """
    out, codec = storage.absolute(out), storage.absolute(codec)
    tracking_uri()  # refused before anything is written
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
    log = RunLog("compress", out)
    log.event(f"{len(missing)} of {plan.units} units are to do")
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
                log.values(_now(tally, pace), step=tally.pictures)
                since, pictures, pixels = time.monotonic(), tally.new_pictures, tally.new_pixels
    seconds = time.monotonic() - started
    if missing:
        values = {"megapixels_per_s": tally.new_pixels / seconds / 1e6, "pictures_per_s": tally.new_pictures / seconds}
        at_work = {f"at_work/{stage}": tally.seconds[stage] / seconds for stage in STAGES}
        tracker.metrics(values | at_work, step=tally.pictures)
        log.values(_now(tally, values), step=tally.pictures)
    log.event(f"done: {tally.pictures} pictures, {tally.failures} failures")


def _now(tally: Tally, pace: dict[str, float]) -> dict[str, float]:
    """What operators see: how fast lately, and how it stands."""
    values = {name.removeprefix("pace/"): value for name, value in pace.items()}
    values |= {"pictures": float(tally.pictures), "failures": float(tally.failures)}
    if tally.pixels:
        values["bpp"] = 8 * tally.bytes / tally.pixels
    return values


def _claim(images: str, out: str, fingerprint: str, config: CompressConfig) -> Plan:
    """The plan of `out`: the one that is there if it is of the same codec and settings, else a new one."""
    images = storage.absolute(images)
    if out == images or out.startswith(f"{images}/"):
        raise UsageError(f"{out} lies among the pictures of {images}; choose another directory")
    identity = {"codec": fingerprint, "images": images, **config.identity()}
    plan = compressed.read_plan(out)
    if plan is None:
        directory = f"{compressed.PLANS}/{uuid.uuid4().hex[:PLAN_TOKEN_DIGITS]}"
        count = units.write_plan(storage.join(out, directory), units.plan_units(images, config.column, config.unit))
        if not count.units:
            raise UsageError(units.nothing_at(images))
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
    with ray_errors(), _all_written(writes):
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
