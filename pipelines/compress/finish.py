"""The end of a compression: the index of all pictures, the summary, and no files that no record names."""

from __future__ import annotations

import dataclasses
import io
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corrdiff.errors import JobError
from pipelines.compress.claim import CompressJob
from pipelines.dataset import format as compressed
from pipelines.dataset.format import INDEX, INDEX_COLUMNS, INDEX_GROUP_ROWS, SUMMARY, Plan, Record, metric_columns
from pipelines.dataset.summary import Summary, percentiles
from pipelines.files import storage
from pipelines.files.storage import READERS

WORST = 4
WORST_PIXELS = 1 << 22
"""Larger pictures are not decoded again to be shown."""
SCATTER_POINTS = 5000
FAILURES_SHOWN = 10_000


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
    records = list(compressed.read_records(out, range(plan.units)))
    missing = compressed.missing_parts(out, records)
    if missing:
        raise JobError(f"{len(missing)} finished parts of {out} are missing, such as {missing[0]}; copy them again")
    table = _read_tables(out, records)
    good = table.filter(pc.equal(table["status"], "ok"))
    failed = table.filter(pc.equal(table["status"], "failed"))
    _write_index(out, good)
    size, pixels = (sum(getattr(r, k) for r in records) for k in ("bytes", "pixels"))
    summary = Summary(
        pictures=len(table), failures=len(failed), bytes=size, pixels=pixels,
        bpp=8 * size / pixels if pixels else None, percentiles=percentiles(good),
        failure_reasons=_counts(pa.array([re.sub(r"\d[\d,]*", "N", e) for e in failed["error"].to_pylist()])),
        qualities=_counts(good["quality"].cast(pa.string())), codec_fingerprint=plan.identity["codec"],
        left_out=dict(sum((Counter(r.left_out) for r in records), Counter(plan.left_out))),
        members=sum(r.members for r in records),
    )  # fmt: skip
    compressed.remove_orphans(out, records)
    storage.write_json(storage.join(out, SUMMARY), dataclasses.asdict(summary))
    return summary, _shown(good, failed)


def _read_tables(out: str, records: Sequence[Record]) -> pa.Table:
    with ThreadPoolExecutor(READERS) as pool:
        tables = pool.map(lambda record: compressed.read_rows(out, record), records)
        return pa.concat_tables(tables, promote_options="permissive")  # qualities were whole numbers before


def _write_index(out: str, good: pa.Table) -> None:
    buffer = io.BytesIO()
    index = good.select(INDEX_COLUMNS).sort_by("key")
    pq.write_table(index, buffer, row_group_size=INDEX_GROUP_ROWS, write_page_checksum=True)
    storage.write_bytes(storage.join(out, INDEX), buffer.getvalue(), storage.PATIENT_ATTEMPTS)


def _shown(good: pa.Table, failed: pa.Table) -> Shown:
    few = good.take(np.linspace(0, max(len(good) - 1, 0), min(len(good), SCATTER_POINTS)).astype(np.int64))
    measured = [name for name in metric_columns() if few[name].null_count < len(few)]
    values = {name: few[name].to_numpy().astype(np.float64) for name in measured}
    small = good.filter(pc.less_equal(pc.multiply(good["width"].cast(pa.int64()), good["height"]), WORST_PIXELS))
    worst = small.filter(pc.is_valid(small["psnr_db"])).sort_by("psnr_db").slice(0, WORST).to_pylist()
    return Shown(values, worst, failed.select(["key", "source", "error"]).slice(0, FAILURES_SHOWN).to_pylist())


def _counts(values: pa.Array) -> dict[str, int]:
    counted = sorted(pc.value_counts(values.drop_null()).to_pylist(), key=lambda c: (-c["counts"], c["values"]))
    return {c["values"]: c["counts"] for c in counted}
