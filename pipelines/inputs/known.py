"""Which of the pictures that a listing finds are planned already: a comparison on this machine's disk, by DuckDB."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from corrdiff.uris import redacted
from pipelines.files.scratch import open_scratch
from pipelines.inputs.samples import Unit
from pipelines.inputs.sources import Source

AT_ONCE = 1 << 14
"""Rows that go to the disk together."""

_PLANNED = pa.schema([("uri", pa.string()), ("key", pa.string()), ("mark", pa.int64())])
_FOUND = pa.schema([
    ("key", pa.string()), ("uri", pa.string()), ("problem", pa.string()), ("sidecars", pa.list_(pa.string())),
    ("mark", pa.int64()), ("escaped", pa.string()),
])  # fmt: skip


class Known:
    """What is planned, and then what a listing has beside it."""

    def __init__(self, directory: str) -> None:
        self._db = open_scratch(f"{directory}/known.duckdb")
        for name, schema in (("planned", _PLANNED), ("found", _FOUND)):
            self._db.register("given", schema.empty_table())
            self._db.execute(f"CREATE TABLE {name} AS SELECT * FROM given")

    def close(self) -> None:
        """Let go of the disk."""
        self._db.close()

    def plan(self, units: Iterable[Unit]) -> None:
        """Say what is planned."""
        rows = itertools.chain.from_iterable(map(_sources, units))
        self._insert("planned", _PLANNED, ({"uri": u, "key": k, "mark": m} for u, k, m in rows))

    def new(self, found: Iterator[Source]) -> Iterator[Source]:
        """Those of a listing that are not planned, in its order; where a key is taken, with the one that is free."""
        self._insert("found", _FOUND, (source._asdict() for source in found))
        reader = self._db.sql(
            "SELECT found.*, exists(SELECT 1 FROM planned WHERE planned.key = found.key) AS taken FROM found "
            "WHERE NOT exists(SELECT 1 FROM planned WHERE planned.uri = found.uri) ORDER BY found.rowid"
        ).to_arrow_reader(AT_ONCE)
        for batch in reader:
            for row in batch.to_pylist():
                taken = row.pop("taken")
                source = Source(**row | {"sidecars": tuple(row["sidecars"])})
                yield source._replace(key=source.escaped) if taken else source

    def changed(self, most: int) -> tuple[int, list[str]]:
        """How many of a listing are not what was planned of them, and the first of them, for people."""
        query = (
            "FROM found WHERE mark != 0 AND exists(SELECT 1 FROM planned WHERE planned.uri = found.uri "
            "AND planned.mark != 0) AND NOT exists(SELECT 1 FROM planned WHERE planned.uri = found.uri "
            "AND planned.mark = found.mark)"
        )
        ((count,),) = self._db.execute(f"SELECT count(*) {query}").fetchall()
        first = self._db.execute(f"SELECT uri {query} ORDER BY rowid LIMIT ?", [most]).fetchall()
        return int(count), [redacted(uri) for (uri,) in first]

    def _insert(self, table: str, schema: pa.Schema, rows: Iterator[dict[str, Any]]) -> None:
        while some := list(itertools.islice(rows, AT_ONCE)):
            self._db.register("given", pa.Table.from_pylist(some, schema))
            self._db.execute(f"INSERT INTO {table} SELECT * FROM given")


def _sources(unit: Unit) -> Iterator[tuple[str, str, int]]:
    """URI, key and mark of what a unit reads: its files, or the one tar or table."""
    keys = [key.removesuffix(".tar") for key in unit.keys] if unit.kind == "shard" else unit.keys
    yield from zip(unit.uris, keys, unit.marks or itertools.repeat(0), strict=False)
