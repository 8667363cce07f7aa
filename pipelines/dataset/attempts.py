"""What of a compressed dataset failed and was tried again: of a picture, the row of its last attempt counts.

The rows of earlier attempts stay where they are, in the tables of their parts: that is the history of a failure. Which
failures are tried again is in memory as a whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from corrdiff.uris import redacted
from pipelines.dataset.format import Plan
from pipelines.dataset.parts import read_tables
from pipelines.dataset.units import Record, read_records
from pipelines.inputs.samples import Found, Unit
from pipelines.inputs.units import read_pictures

Attempts = Mapping[str, int]
"""Key of a failure that is tried again -> number of the last unit that does it."""


def read_attempts(uri: str, plan: Plan) -> Attempts:
    """What is tried again by any stage of a plan. Raises `JobError` where its description is damaged or missing."""
    return {key: number for number, unit in plan.all_units(uri, retries_alone=True) for key in unit.again}


def read_newest(uri: str, records: Iterable[Record], attempts: Attempts) -> Iterator[tuple[Record, pa.Table]]:
    """Records and the tables of their parts, as `read_tables`, without failures that were tried again later."""
    for record, table in read_tables(uri, records):
        yield record, _newest(table, record.unit, attempts) if record.failures and attempts else table


def _newest(table: pa.Table, unit: int, attempts: Attempts) -> pa.Table:
    later = [unit < attempts.get(key, 0) for key in table["key"].to_pylist()]
    return table.filter(pc.invert(pc.and_(pc.equal(table["status"], "failed"), pa.array(later, pa.bool_()))))


def read_again(uri: str, unit: Unit) -> Iterator[Found]:
    """The pictures of a unit that tries something again: each that failed, and of a tar what no unit has had yet, where
    it broke off before.

    What failed and is not there any more fails once more, and says so. Raises as `read_pictures` and `read_tables`.
    """
    known: dict[str, tuple[str, str]] = {}
    for _, table in read_tables(uri, read_records(uri, unit.units)):
        rows = table.select(["key", "source", "error"]).to_pylist()
        known |= {row["key"]: (row["source"], row["error"] or "") for row in rows}
    left, broken = dict.fromkeys(unit.again), ""
    for found in read_pictures(unit, left_out=Counter()):
        if found.key in left or found.key not in known:
            left.pop(found.key, None)
            yield found
        elif found.data is None and found.error != known[found.key][1]:
            broken = found.error
    for key in left:
        source, _ = known[key]
        if broken or source != redacted(unit.uris[0]):  # else a tar that was broken in no picture is whole now
            yield Found(key, source, None, broken or "it is not there any more")
