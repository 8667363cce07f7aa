"""The end of a compression: the index of all pictures, the summary, and no files that no record names."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff.errors import JobError
from pipelines.compress.claim import CompressJob
from pipelines.dataset.attempts import read_attempts, read_newest
from pipelines.dataset.format import INDEX, INDEX_GROUP_ROWS, SUMMARY, Plan
from pipelines.dataset.rows import Rows
from pipelines.dataset.summary import Summary
from pipelines.dataset.units import Record, bundle_records, missing_parts, read_records, remove_orphans
from pipelines.files import storage

WORST = 4
WORST_PIXELS = 1 << 22
"""Larger pictures are not decoded again to be shown."""
SCATTER_POINTS = 5000
FAILURES_SHOWN = 10_000

PARTS_AT_ONCE = 256
"""Whose tables are put into one; many small ones cost more."""


class Shown(NamedTuple):
    """What of a table is drawn and listed, however many rows it has."""

    values: dict[str, npt.NDArray[np.float64]]
    """Metric -> values of some pictures, the same pictures for each."""
    worst: list[dict[str, Any]]
    """Rows of the pictures with the least PSNR."""
    failures: list[dict[str, Any]]


def finish(job: CompressJob) -> tuple[Summary, Shown]:
    """Index and summary of a compression whose units are all done, and what its report shows.

    A Ray task does it: the table of all pictures may be larger than what the driver should hold.
    """
    import ray

    found: tuple[Summary, Shown] = ray.get(ray.remote(_finish).options(num_cpus=0).remote(job.out, job.plan))
    return found


def _finish(out: str, plan: Plan) -> tuple[Summary, Shown]:
    """The Ray task; the summary is written last."""
    bundle_records(out)
    totals = _totals(out, plan)
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(Rows(scratch)) as rows:
        newest = read_newest(out, read_records(out, range(plan.units)), read_attempts(out, plan))
        while some := [table for _, table in itertools.islice(newest, PARTS_AT_ONCE)]:
            rows.add(pa.concat_tables(some, promote_options="permissive"))  # qualities were whole numbers before
        good, failures = rows.counted()
        _write_index(out, rows, scratch)
        summary = Summary(
            pictures=good + failures, failures=failures, percentiles=rows.percentiles(),
            failure_reasons=rows.failure_reasons(), qualities=rows.qualities(),
            codec_fingerprint=plan.identity["codec"], units=plan.units, **totals,
        )  # fmt: skip
        shown = Shown(rows.spread(SCATTER_POINTS), rows.worst(WORST, WORST_PIXELS), rows.failures(FAILURES_SHOWN))
    remove_orphans(out)
    storage.write_json(storage.join(out, SUMMARY), dataclasses.asdict(summary))
    return summary, shown


def _totals(out: str, plan: Plan) -> dict[str, Any]:
    """What the records add up to. Raises `JobError` where a part is missing."""
    size = pixels = members = 0
    left_out = Counter(plan.left_out)

    def counted() -> Iterator[Record]:
        nonlocal size, pixels, members
        for record in read_records(out, range(plan.units)):
            size, pixels, members = size + record.bytes, pixels + record.pixels, members + record.members
            left_out.update(record.left_out)
            yield record

    missing = missing_parts(out, counted())
    if missing:
        raise JobError(f"{len(missing)} finished parts of {out} are missing, such as {missing[0]}; copy them again")
    bpp = 8 * size / pixels if pixels else None
    return {"bytes": size, "pixels": pixels, "bpp": bpp, "left_out": dict(left_out), "members": members}


def _write_index(out: str, rows: Rows, scratch: str) -> None:
    place = f"{scratch}/keys.parquet"
    with pq.ParquetWriter(place, rows.index_schema, write_page_checksum=True) as writer:
        for batch in rows.index(INDEX_GROUP_ROWS):
            writer.write_batch(batch, row_group_size=INDEX_GROUP_ROWS)
    storage.write_file(storage.join(out, INDEX), place, storage.PATIENT_ATTEMPTS)
