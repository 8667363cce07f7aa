"""What travels with the pictures of tables: from the table into a part, and out of it again."""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corrdiff.errors import UsageError
from pipelines.compress.chunk import Whole
from pipelines.compress.write import write_unit
from pipelines.dataset import fields
from pipelines.dataset.format import columns
from pipelines.dataset.parts import read_part_table
from pipelines.dataset.units import Record
from pipelines.files import storage
from pipelines.inputs import samples, units
from pipelines.inputs.samples import ALL, NONE, Found, Travels
from pipelines.inputs.units import PlannedUnits, Unit
from tests.support.compression import coded

Write = Callable[[str, bytes], None]

ROWS = 7
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
EVERYTHING = Travels((ALL,))
NESTED = pa.list_(pa.struct([("box", pa.list_(pa.float32(), 4)), ("name", pa.string())]))


def _table() -> pa.Table:
    boxes = [[{"box": [i, 0.5, 1, 2], "name": f"n{i}"}] * (i % 3) if i != 5 else None for i in range(ROWS)]
    return pa.table({
        "caption": pa.array([f"caption {i}" if i != 2 else None for i in range(ROWS)]),
        "image": pa.array([{"bytes": bytes([i]), "path": f"{i}.png"} for i in range(ROWS)], PICTURE),
        "width": pa.array([i * 100 for i in range(ROWS)], pa.int16()),
        "KEY": pa.array([f"id-{i}" for i in range(ROWS)]).dictionary_encode(),
        "when": pa.array([datetime.datetime(2024, 1, i + 1) for i in range(ROWS)], pa.timestamp("us")),
        "boxes": pa.array(boxes, NESTED),
        "raw": pa.array([b"\0" * i for i in range(ROWS)], pa.large_binary()),
    })  # fmt: skip


def _plan(place: Path, travels: Travels = EVERYTHING, column: str = "image") -> list[Unit]:
    return list(units.plan_units(str(place), column, 4, None, travels))


def _part(place: Path, found: list[Found]) -> tuple[Record, str]:
    done = [coded(i, f.data, f.key)._replace(fields=f.fields) for i, f in enumerate(found)]
    return write_unit(str(place), 0, Whole(done, {}, {}), columns()), str(place)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    pq.write_table(_table(), tmp_path / "in" / "t.parquet", row_group_size=4)
    return tmp_path / "in"


def test_columns_travel_with_their_types_and_values_without_the_pictures_bytes(table: Path, tmp_path: Path) -> None:
    found = [f for unit in _plan(table) for f in units.read_pictures(unit)]
    assert [f.data for f in found] == [bytes([i]) for i in range(ROWS)]
    record, place = _part(tmp_path / "out", found)
    whole = pq.read_table(tmp_path / "out" / record.parquet.name)
    assert whole.schema.names == [
        *columns().names, "caption", "image", "original_width", "original_KEY", "when", "boxes", "raw",
    ]  # fmt: skip
    expected = pq.read_table(table / "t.parquet").set_column(
        1, "image", pa.array([{"path": f"{i}.png"} for i in range(ROWS)])
    )
    got = fields.original_columns(read_part_table(place, record, every_column=True))
    assert got.schema.names == expected.schema.names
    assert [str(f.type) for f in got.schema] == [str(f.type) for f in expected.schema]
    assert got.to_pylist() == expected.to_pylist()
    assert read_part_table(place, record).schema.equals(columns())


def test_each_picture_of_a_part_is_given_back_with_its_row(table: Path, tmp_path: Path) -> None:
    found = [f for unit in _plan(table) for f in units.read_pictures(unit)]
    found[1] = found[1]._replace(data=None, error="broken")
    record, place = _part(tmp_path / "out", found)
    read = {file.key: fields.values(file.fields) for file in fields.read_part_with_columns(place, record)}
    rows: list[dict[str, Any]] = _table().to_pylist()
    assert read == {
        f.key: rows[i] | {"image": {"path": f"{i}.png"}} for i, f in enumerate(found) if i != 1
    }  # fmt: skip
    failed = pq.read_table(tmp_path / "out" / record.parquet.name).to_pylist()[1]
    assert (failed["status"], failed["caption"], failed["original_KEY"]) == ("failed", "caption 1", "id-1")


def test_only_the_columns_that_are_named_travel_and_of_none_nothing_is_read(table: Path) -> None:
    def names(travels: Travels, column: str = "image") -> list[str]:
        (first, *_) = _plan(table, travels, column)
        return pa.ipc.read_schema(pa.py_buffer(first.schema)).names if first.schema else []

    assert names(Travels(("raw", "caption"))) == ["caption", "raw"]
    assert names(Travels((NONE,))) == []
    assert names(Travels((ALL,)), "raw") == ["caption", "image", "width", "KEY", "when", "boxes"]
    assert "caption" in names(Travels((ALL,)), "caption")
    with pytest.raises(UsageError, match="has no column 'text'; it has caption, image"):
        names(Travels(("text",)))


def test_a_plan_keeps_the_types_of_what_travels(table: Path) -> None:
    planned = _plan(table)
    units.write_plan("memory://travelling-columns", iter(planned))
    assert units.read_units(PlannedUnits("memory://travelling-columns"), 0) == planned


def test_rows_that_are_gone_are_rows_of_nothing_with_a_reason(table: Path, tmp_path: Path) -> None:
    planned = _plan(table)
    pq.write_table(_table().slice(0, 6), table / "t.parquet", row_group_size=4)
    found = list(units.read_pictures(planned[1]))
    assert [f.error for f in found] == ["", "", "there is no such row any more"]
    record, place = _part(tmp_path / "out", found)
    rows = fields.original_columns(read_part_table(place, record, every_column=True)).to_pylist()
    assert [row["caption"] for row in rows] == ["caption 4", "caption 5", None]
    assert set(rows[2].values()) == {None}
    pq.write_table(_table().set_column(2, "width", pa.array(["w"] * ROWS)), table / "t.parquet", row_group_size=4)
    assert {f.error for f in units.read_pictures(planned[0])} == {"the table's column 'width' is of another type now"}
    pq.write_table(_table().drop_columns(["raw"]), table / "t.parquet", row_group_size=4)
    assert {f.error for f in units.read_pictures(planned[0])} == {"the table has no column 'raw' any more"}
    (table / "t.parquet").unlink()
    gone = list(units.read_pictures(planned[0]))
    record, place = _part(tmp_path / "gone", gone)
    every = read_part_table(place, record, every_column=True)
    assert [str(f.type) for f in fields.original_columns(every).schema][2] == "int16"


def test_a_row_whose_columns_are_too_large_is_a_failure_that_says_what_to_do(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = max(f.fields.size for unit in _plan(table) for f in units.read_pictures(unit))
    monkeypatch.setattr(samples, "MAX_FIELD_BYTES", size - 1)
    found = [f for unit in _plan(table) for f in units.read_pictures(unit)]
    failed = [f for f in found if f.data is None]
    assert 0 < len(failed) < ROWS
    assert {f.error for f in failed} == {
        "its columns hold more than 0 MiB beside a picture; name others with --columns"
    }
    assert all(set(fields.values(f.fields).values()) == {None} for f in failed)


def test_a_table_that_has_a_column_twice_is_refused_where_it_would_travel(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([b"x"]), pa.array([1]), pa.array([2])], ["image", "n", "n"])
    buffer = io.BytesIO()
    pq.write_table(twice, buffer)
    storage.write_bytes(str(tmp_path / "t.parquet"), buffer.getvalue())
    with pytest.raises(UsageError, match="has two columns 'n'; name others with --columns"):
        _plan(tmp_path)
    assert len(_plan(tmp_path, Travels((NONE,)))) == 1
