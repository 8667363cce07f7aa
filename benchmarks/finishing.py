"""The end of a large compression: seconds, objects read and written, and memory, over the number of pictures.

Made-up rows in the format of real records and tables, with empty tars. Two processes are measured:

    goes on    a driver that finds all units done: their records
    finishes   the task that checks the parts, sorts the index, and writes the summary

Memory is the peak of the process, and beside it what it has when nothing is read yet.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import Row, again, parser, report
from benchmarks.planning import peak_rss
from pipelines.compress.finish import _finish
from pipelines.compress.tally import Tally
from pipelines.dataset.format import Plan, Stage, columns, metric_columns, part_name
from pipelines.dataset.units import File, Record, bundle_records, create_record, finished_units, read_records
from pipelines.files import storage

UNIT = 64
FAILED_SHARE = 0.001
AT_ONCE = 1 << 12
"""Units that are made up before their records are bundled, as a running job does."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    made.add_argument("--of", choices=["goes on", "finishes"], help=argparse.SUPPRESS)
    made.add_argument("--uri", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.of:
        print(json.dumps(measure(arguments.of, arguments.uri, arguments.rows[0])))
        return
    rows: list[Row] = []
    for number in arguments.rows:
        with tempfile.TemporaryDirectory() as out:
            make_up(out, number)
            for what in ("goes on", "finishes"):
                command = again("--of", what, "--uri", out, "--rows", number)
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                rows.append({"rows": number, "": what, **json.loads(done.stdout.splitlines()[-1])})
    report(f"the end of a compression, units of {UNIT}", rows, arguments.json)


def make_up(out: str, number: int) -> None:
    """Write a dataset whose units are all done, and which is not finished."""
    units = range(-(-number // UNIT))
    with ProcessPoolExecutor() as pool:
        for first in units[::AT_ONCE]:
            list(pool.map(partial(_make_unit, out, number), units[first : first + AT_ONCE], chunksize=64))
            bundle_records(out)


def _make_unit(out: str, number: int, unit: int) -> None:
    draw = np.random.default_rng(unit)
    places = np.arange(unit * UNIT, min((unit + 1) * UNIT, number))
    failed = draw.random(len(places)) < FAILED_SHARE
    tar = part_name(unit, "tar", hashlib.sha256(str(unit).encode()).hexdigest())
    values: dict[str, Any] = {
        "key": [f"{hashlib.sha256(str(i).encode()).hexdigest()[:8]}/picture-{i:09d}" for i in places],
        "source": [f"s3://bucket/photographs/picture-{i:09d}.jpg" for i in places], "width": [640] * len(places),
        "height": [427] * len(places), "bytes": draw.integers(2000, 40_000, len(places)),
        "quality": [4.0] * len(places), "quality_source": ["encoder replay"] * len(places),
        "status": np.where(failed, "failed", "ok"),
        "error": [f"the file ends at byte {i}" if f else None for i, f in zip(places, failed, strict=True)],
        "part": [tar] * len(places), "offset": places * 512, **{m: draw.random(len(places)) for m in metric_columns()},
    }  # fmt: skip
    schema = columns()
    buffer = io.BytesIO()
    pq.write_table(pa.table([pa.array(values[f.name], f.type) for f in schema], schema=schema), buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    table = part_name(unit, "parquet", digest)
    storage.write_bytes(storage.join(out, tar), b"")
    storage.write_bytes(storage.join(out, table), buffer.getvalue())
    record = Record(
        unit, File(tar, 0, hashlib.sha256(b"").hexdigest()), File(table, len(buffer.getvalue()), digest), len(places),
        int(failed.sum()), int(values["bytes"].sum()), 640 * 427 * len(places),
        {stage: float(unit) for stage in ("read", "encode", "code", "write")},
    )  # fmt: skip
    create_record(out, record)


def measure(what: str, out: str, number: int) -> Row:
    plan = Plan({"codec": "0" * 64}, (Stage("_plan/0", -(-number // UNIT), number),))
    metric_columns()  # the networks' libraries are there
    before = peak_rss()
    counted = count_objects()
    started = time.perf_counter()
    if what == "goes on":
        assert len(Tally(plan, read_records(out, finished_units(out))).done) == plan.units
    else:
        summary, _ = _finish(out, plan)
        assert summary.pictures == number
    seconds = time.perf_counter() - started
    return {
        "s": seconds, "objects read": counted["read"], "objects written": counted["written"],
        "peak MB": peak_rss() / 1e6, "before MB": before / 1e6,
    }  # fmt: skip


def count_objects() -> Counter[str]:
    """Count from now on what storage is asked for."""
    counted: Counter[str] = Counter()

    def counting(real: Callable[..., Any], what: str) -> Callable[..., Any]:
        def action(*arguments: Any, **named: Any) -> Any:
            counted[what] += 1
            return real(*arguments, **named)

        return action

    for name, what in (
        ("read_bytes", "read"), ("open_ranges", "read"), ("write_bytes", "written"), ("write_file", "written"),
        ("create_bytes", "written"),
    ):  # fmt: skip
        setattr(storage, name, counting(getattr(storage, name), what))
    return counted


if __name__ == "__main__":
    main()
