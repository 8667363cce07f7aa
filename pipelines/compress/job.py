"""A dataset -> bitstreams and a table of metrics: the stages as one pipeline on Ray Data.

    read    CPU          a unit's pictures, opened, in chunks of like size
    encode  GPU or CPU   the networks and the factors, a few pictures at a time; symbols and factors come out
    code    CPU          symbols to a file, the file read back to the same latents, quality
    write   I/O          a unit whose pictures have all come: its part, and then its record

Chunks pass from stage to stage through Ray's object store, which holds them back where a later stage is slower: memory
does not grow with the dataset, and a GPU has its next pictures ready before it is done with the last.

What is to be done is written down first, in units (claim.py). A unit's chunks may come out of the pipeline in any
order; when all are there the unit is written, by a task of its own. Whatever dies, units that have a record are done,
and the same command does the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterator
from typing import Any

from corrdiff.codec_directory import read_config
from corrdiff.errors import JobError
from pipelines.compress import report
from pipelines.compress.chunk import STAGES
from pipelines.compress.claim import CompressJob, claim
from pipelines.compress.code import Coder
from pipelines.compress.config import CompressConfig
from pipelines.compress.encode import Encoder
from pipelines.compress.finish import finish
from pipelines.compress.grow import extend, retry
from pipelines.compress.rate_target import find_rate
from pipelines.compress.read import open_units
from pipelines.compress.tally import Assembly, Tally
from pipelines.compress.write import write_unit
from pipelines.dataset.format import Plan, columns, read_plan, units_without_part
from pipelines.dataset.summary import Summary, read_summary
from pipelines.dataset.units import BUNDLE_UNITS, bundle_records, finished_units, read_records
from pipelines.display.progress import Progress, console
from pipelines.files import storage
from pipelines.runtime.resources import pools
from pipelines.runtime.session import ray_errors, ray_session
from pipelines.runtime.stages import rows_as_they_come
from pipelines.tracking.run_log import RunLog
from pipelines.tracking.tracker import Tracker, tracking_uri

SEGMENT_UNITS = 4096
"""Units of one Ray Data execution; a large dataset is a chain of them."""

WRITES_AT_ONCE = 8
PACE_EVERY_S = 10.0


def compress_dataset(
    images: str, out: str, codec: str, config: CompressConfig, extending: bool = False, retrying: str | None = None
) -> Generator[Progress, None, Summary]:
    """Compress pictures in parallel on Ray; yields progress, and returns the summary.

    Args:
        extending: whether what is new at `images` is added to what was planned.
        retrying: with it, what failed for a reason with this text in it is tried again.

    Raises:
        UsageError: no pictures, no codec, or `out` holds another compression.
        JobError: storage failed for long, more pictures failed than `max_failures`, or all did.
    """
    out, codec = storage.absolute(out), storage.absolute(codec)
    tracking_uri()  # refused before anything is written
    made, fingerprint, _ = read_config(codec)
    made.check(config.settings())
    grows = extending and read_plan(out) is not None  # what begins now has all that is there
    plan = claim(images, out, fingerprint, config)
    if retrying is not None:
        plan = retry(out, plan, config, retrying, console.print)
    if grows:
        plan = extend(out, plan, config, console.print)
    summary = read_summary(out)
    if summary is not None and summary.covers(plan):
        _check_parts(out, plan)
        console.print("nothing to do: every part is there")
    else:
        with ray_session():
            summary = yield from _compress(CompressJob(images, out, codec, plan, config))
    if summary.pictures and summary.failures == summary.pictures:
        raise JobError(f"not one of {summary.pictures} pictures could be compressed: {summary.failure_reasons}")
    return summary


def _check_parts(out: str, plan: Plan) -> None:
    """Raises `JobError` where a part of a finished dataset is gone."""
    missing = units_without_part(out, plan.units)
    if missing:
        raise JobError(
            f"{len(missing)} finished units of {out} have lost a part, such as unit {missing[0]}; copy it again"
        )


def _compress(job: CompressJob) -> Generator[Progress, None, Summary]:
    """Everything that is missing, up to the summary, as one run in MLflow."""
    tally = Tally(job.plan, read_records(job.out, finished_units(job.out)))
    yield tally.progress()
    tracker = report.begin(job, console.print)
    status = "FAILED"
    try:
        if job.config.has_target:
            rate = find_rate(job)
            job = dataclasses.replace(job, rate=rate)
            found = {k: float(getattr(rate, k)) for k in ("slope", "start", "sampled", "bpp", "psnr_db")}
            tracker.metrics({f"target/{k}": v for k, v in found.items()}, step=0)
        yield from _run_all(job, tally, tracker)
        summary, shown = finish(job)
        report.send(job, summary, shown, tracker)
        status = "FINISHED"
        return summary
    finally:
        tracker.close(status)


def _run_all(job: CompressJob, tally: Tally, tracker: Tracker) -> Iterator[Progress]:
    """All units without a record; the pace goes to MLflow now and then, and the stages' shares at the end."""
    missing = [unit for unit in range(job.plan.units) if unit not in tally.done]
    log = RunLog("compress", job.out)
    log.event(f"{len(missing)} of {job.plan.units} units are to do")
    started = since = time.monotonic()
    pictures, pixels = 0, 0
    for i in range(0, len(missing), SEGMENT_UNITS):
        for progress in _run(job, missing[i : i + SEGMENT_UNITS], tally):
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
    return values if tally.bpp is None else values | {"bpp": tally.bpp}


def _run(job: CompressJob, numbers: list[int], tally: Tally) -> Iterator[Progress]:
    """Take units through the stages; yields after each chunk and each unit."""
    import ray

    config = job.config
    stages = pools(config.device, config.workers)
    dataset = (
        open_units(numbers, job, stages)
        .map(
            Encoder,
            fn_constructor_args=(job.codec, config, stages.device, job.rate, job.fingerprint),
            **stages.networks,
        )
        .map(Coder, fn_constructor_args=(job.codec, config.lpips_weights, job.fingerprint), **stages.coders)
    )
    write, table = ray.remote(write_unit).options(num_cpus=0), columns()
    assembly = Assembly()
    writes: list[Any] = []
    with ray_errors(), _all_written(writes):
        for row in rows_as_they_come(dataset):
            tally.add(row["chunk"])
            whole = assembly.add(row["chunk"])
            if whole is not None:
                writes.append(write.remote(job.out, row["chunk"].unit, whole, table))
            _check_failures(tally, config)
            while len(writes) > WRITES_AT_ONCE:
                done, writes[:] = ray.wait(writes)
                tally.write(ray.get(done[0]))
                if len(tally.done) % BUNDLE_UNITS == 0:  # to look lists some hundreds of names
                    bundle_records(job.out)
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
