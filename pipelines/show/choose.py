"""Some rows of a compressed dataset, however many it has: no more than the chosen and a few parts' are in memory."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corrdiff.errors import JobError, UsageError
from pipelines.dataset.attempts import read_attempts, read_newest
from pipelines.dataset.format import INDEX, Plan, metric_columns, unit_of
from pipelines.dataset.index import Member, find
from pipelines.dataset.parts import read_tables
from pipelines.dataset.units import read_records
from pipelines.files import storage

Row = dict[str, Any]


def of_keys(uri: str, keys: Sequence[str]) -> list[Row]:
    """The rows of some pictures, in the order of their keys as they were given.

    Raises `UsageError` where one is not there.
    """
    return _rows(uri, find(uri, list(dict.fromkeys(keys))))


def drawn(uri: str, count: int, seed: int) -> list[Row]:
    """The rows of some pictures, each as likely as another; of the index only where they are is read."""
    try:
        with storage.open_ranges(storage.join(uri, INDEX)) as file:
            index = pq.ParquetFile(file, page_checksum_verification=True)
            number = index.metadata.num_rows
            places = sorted(random.Random(seed).sample(range(number), min(count, number)))
            members: list[Member] = []
            first = 0
            for group in range(index.num_row_groups):
                rows = index.metadata.row_group(group).num_rows
                here = [place - first for place in places if first <= place < first + rows]
                if here:
                    found = index.read_row_group(group, columns=list(Member._fields)).take(here)
                    members += [Member(**row) for row in found.to_pylist()]
                first += rows
    except FileNotFoundError:
        raise UsageError(f"{uri} has no index: the compression is not complete; run it again") from None
    except (pa.ArrowException, OSError, TypeError) as error:
        raise UsageError(f"{uri}/{INDEX} is damaged ({type(error).__name__}); copy it again") from None
    return _rows(uri, members)


def worst(uri: str, plan: Plan, metric: str, count: int) -> list[Row]:
    """The rows of the pictures that are worst by a metric, the worst first; those that do not have it are none.

    Raises `UsageError` where nothing of that name is measured.
    """
    from corrdiff.metrics import DATASET_METRICS

    if metric not in metric_columns():
        raise UsageError(f"--worst must be one of {', '.join(metric_columns())}, not '{metric}'")
    higher_is_better = metric in {m.name for m in DATASET_METRICS if m.better == "higher"}
    sign = 1 if higher_is_better else -1
    order = [(metric, "ascending" if higher_is_better else "descending"), ("key", "ascending")]

    def of_part(table: pa.Table) -> list[Row]:
        if metric not in table.schema.names:  # of an older version
            return []
        rows: list[Row] = table.filter(pc.is_valid(table[metric])).sort_by(order).slice(0, count).to_pylist()
        return rows

    tables = read_tables(uri, read_records(uri, range(plan.units)))
    every = itertools.chain.from_iterable(of_part(table) for _, table in tables)
    return heapq.nsmallest(count, every, key=lambda row: (sign * row[metric], row["key"]))


def failed(uri: str, plan: Plan, count: int) -> list[Row]:
    """The first rows of what failed, at its last attempt."""
    with_failures = (record for record in read_records(uri, range(plan.units)) if record.failures)
    every = (
        row
        for _, table in read_newest(uri, with_failures, read_attempts(uri, plan))
        for row in table.filter(pc.equal(table["status"], "failed")).to_pylist()
    )
    return list(itertools.islice(every, count))


def _rows(uri: str, members: Sequence[Member]) -> list[Row]:
    """The rows of pictures of which it is known where they are."""
    units = {unit_of(member.part) for member in members}
    wanted = pa.array([member.key for member in members], pa.string())
    found: dict[str, Row] = {}
    for _, table in read_tables(uri, read_records(uri, sorted(units))):
        found |= {row["key"]: row for row in table.filter(pc.is_in(table["key"], wanted)).to_pylist()}
    missing = [member.key for member in members if member.key not in found]
    if missing:
        raise JobError(f"{uri}: the table of its part does not name '{missing[0]}', which the index has")
    return [found[member.key] for member in members]
