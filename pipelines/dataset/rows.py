"""All rows of a compressed dataset at once, in little memory: a table on this machine's disk, which DuckDB sorts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.dataset.format import INDEX_COLUMNS, columns, metric_columns
from pipelines.dataset.summary import NUMBER, PERCENTILES
from pipelines.files.scratch import open_scratch


class Rows:
    """Rows of parts' tables, numbered as they were added."""

    def __init__(self, directory: str) -> None:
        self._schema = columns()
        self._db = open_scratch(f"{directory}/rows.duckdb")
        empty = self._schema.empty_table()
        self._db.register("given", empty)
        self._db.execute("CREATE TABLE good AS SELECT * FROM given")
        self._db.execute("CREATE TABLE failed AS SELECT key, source, error FROM given")

    def close(self) -> None:
        """Let go of the disk."""
        self._db.close()

    def add(self, table: pa.Table) -> None:
        """Add rows; columns that they do not have are null, and those that a dataset has no more are left."""
        names = set(table.schema.names)
        given = pa.table([
            table[field.name].cast(field.type) if field.name in names else pa.nulls(len(table), field.type)
            for field in self._schema
        ], schema=self._schema)  # fmt: skip
        self._db.register("given", given)
        self._db.execute("INSERT INTO good SELECT * FROM given WHERE status = 'ok'")
        self._db.execute("INSERT INTO failed SELECT key, source, error FROM given WHERE status = 'failed'")

    def counted(self) -> tuple[int, int]:
        """How many are good, and how many have failed."""
        return self._count("good"), self._count("failed")

    def failure_reasons(self) -> dict[str, int]:
        """How many failed for each reason, the most frequent first; numbers in a reason are left out, so that like
        failures count together."""
        query = "SELECT regexp_replace(error, ?, 'N', 'g') AS reason, count(*) AS number FROM failed"
        return dict(self._db.execute(f"{query} GROUP BY reason ORDER BY number DESC, reason", [NUMBER]).fetchall())

    def qualities(self) -> dict[str, int]:
        """How many pictures have each quality, the most frequent first."""
        counted = self._db.execute("SELECT quality, count(*) FROM good WHERE quality IS NOT NULL GROUP BY 1").fetchall()
        return {f"{quality:g}": number for quality, number in sorted(counted, key=lambda c: (-c[1], f"{c[0]:g}"))}

    def spread(self, most: int) -> dict[str, npt.NDArray[np.float64]]:
        """Of each metric that all of them have, the values of some good pictures, spread over the dataset: the same
        pictures for each metric."""
        number = self._count("good")
        places = np.linspace(0, max(number - 1, 0), min(number, most)).astype(np.int64)
        self._db.register("places", pa.table({"place": places}))
        named = ", ".join(f'"{name}"' for name in metric_columns())
        few = self._db.sql(
            f"SELECT {named} FROM places JOIN good ON good.rowid = places.place ORDER BY good.rowid"
        ).to_arrow_table()
        measured = [name for name in metric_columns() if few[name].null_count < len(few)]
        return {name: few[name].to_numpy().astype(np.float64) for name in measured}

    def worst(self, most: int, most_pixels: int) -> list[dict[str, Any]]:
        """The good pictures with the least PSNR, but very large ones."""
        return self._dicts(
            "SELECT * FROM good WHERE psnr_db IS NOT NULL AND width::BIGINT * height <= ? "
            "ORDER BY psnr_db, rowid LIMIT ?", most_pixels, most,
        )  # fmt: skip

    def failures(self, most: int) -> list[dict[str, Any]]:
        """The first that failed, and why."""
        return self._dicts("SELECT * FROM failed ORDER BY rowid LIMIT ?", most)

    def _dicts(self, query: str, *values: object) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self._db.sql(query, params=values).to_arrow_table().to_pylist()
        return rows

    def _count(self, table: str) -> int:
        return int(self._one(f"SELECT count(*) FROM {table}"))

    def _one(self, query: str) -> Any:
        ((value,),) = self._db.execute(query).fetchall()
        return value

    @property
    def index_schema(self) -> pa.Schema:
        """Of what `index` gives."""
        return pa.schema([self._schema.field(name) for name in INDEX_COLUMNS])

    def index(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Where each good picture's file is, sorted by key."""
        named = ", ".join(f'"{name}"' for name in INDEX_COLUMNS)
        reader = self._db.sql(f"SELECT {named} FROM good ORDER BY key").to_arrow_reader(rows)
        for batch in reader:
            yield batch.cast(self.index_schema)

    def percentiles(self) -> dict[str, dict[str, float]]:
        """The mean and the percentiles of each metric, over the pictures that have it."""
        found: dict[str, dict[str, float]] = {}
        for name in metric_columns():
            values = f'SELECT "{name}" v FROM good WHERE "{name}" IS NOT NULL ORDER BY v'
            self._db.execute(f"CREATE OR REPLACE TEMP TABLE sorted AS {values}")
            number = self._count("sorted")
            if number:
                found[name] = {"mean": float(self._one("SELECT avg(v) FROM sorted"))}
                found[name] |= {f"p{p}": self._at((number - 1) * p / 100) for p in PERCENTILES}
        self._db.execute("DROP TABLE IF EXISTS sorted")
        return found

    def _at(self, place: float) -> float:
        """A value of the sorted ones, between two of them where the place is."""
        below, above = int(np.floor(place)), int(np.ceil(place))
        low, high = (float(self._one(f"SELECT v FROM sorted WHERE rowid = {n}")) for n in (below, above))
        return low + (high - low) * (place - below)
