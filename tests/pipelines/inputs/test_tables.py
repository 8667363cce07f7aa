from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from corrdiff.errors import UsageError
from pipelines.files import storage
from pipelines.inputs import units
from tests.support.inputs import plan, read, table_of, table_of_bytes, tar_of

Write = Callable[[str, bytes], None]


def test_a_table_of_paths_is_cut_within_its_row_groups(tmp_path: Path, write: Write) -> None:
    for i in range(7):
        write(f"{i}.png", bytes([i]))
    write("t.parquet", table_of({"path": [f"{i}.png" for i in range(7)]}, group=5))
    planned = plan(tmp_path, "path", size=3)
    assert [(u.group, u.first, u.pictures) for u in planned] == [(0, 0, 3), (0, 3, 2), (1, 0, 2)]
    assert [f.data for f in read(planned)] == [bytes([i]) for i in range(7)]
    assert [f.key for f in read(planned)] == [f"t/{i:09d}" for i in range(7)]


def test_a_row_group_of_bytes_is_a_unit(tmp_path: Path, write: Write) -> None:
    write("t.parquet", table_of_bytes(12, 5))
    planned = plan(tmp_path, "image", size=3)
    assert [(u.group, u.first, u.pictures) for u in planned] == [(0, 0, 5), (1, 0, 5), (2, 0, 2)]
    assert {u.kind for u in planned} == {"table"}
    found = read(planned)
    assert [f.data for f in found] == [bytes([i]) for i in range(12)]
    assert [f.key for f in found] == [f"t/{i:09d}" for i in range(12)]
    assert found[7].source == f"{tmp_path}/t.parquet, row 7"


def test_with_a_column_only_tables_are_taken(tmp_path: Path, write: Write) -> None:
    write("a.png", b"1")
    write("b.tar", tar_of({"x.png": b"1"}))
    write("c.parquet", table_of_bytes(2, 2))
    write("sub/d.parquet", table_of_bytes(2, 2))
    found = read(plan(tmp_path, "image"))
    assert [f.key.rpartition("/")[0] for f in found] == ["c", "c", "sub/d", "sub/d"]


def test_planning_a_table_reads_its_end_and_a_unit_its_column(
    tmp_path: Path, write: Write, ranges_read: list[int]
) -> None:
    pictures = [np.random.default_rng(i).bytes(1 << 20) for i in range(8)]
    write("t.parquet", table_of({"image": pictures, "other": pictures[::-1]}, group=2))
    planned = plan(tmp_path, "image", size=2)
    assert len(planned) == 4
    assert sum(ranges_read) < 1 << 20
    ranges_read.clear()
    assert [f.data for f in read(planned[2:3])] == pictures[4:6]
    assert sum(ranges_read) < 4 << 20


def test_paths_in_a_table_are_relative_to_it_or_whole(tmp_path: Path, write: Write) -> None:
    write("pictures/a.png", b"a")
    write("elsewhere/b.png", b"b")
    storage.write_bytes("memory://units-paths/c.png", b"c")
    whole = str(tmp_path / "elsewhere/b.png")
    write("t.parquet", table_of({"path": ["pictures/a.png", whole, "memory://units-paths/c.png"]}))
    found = read(plan(tmp_path, "path"))
    assert [f.data for f in found] == [b"a", b"b", b"c"]
    assert [f.source for f in found] == ["pictures/a.png", whole, "memory://units-paths/c.png"]


def test_paths_that_lead_nowhere_are_failures_and_the_others_come(tmp_path: Path, write: Write) -> None:
    write("a.png", b"a")
    write("t.parquet", table_of({"path": ["gone.png", None, "nosuch://scheme/x.png", "", "a.png"]}))
    found = read(plan(tmp_path, "path"))
    assert [f.data for f in found] == [None, None, None, None, b"a"]
    assert found[0].error == "there is no such file"
    assert found[1].error == "column 'path' holds nothing, neither a path nor bytes"
    assert "nosuch" in found[2].error
    assert all(f.error for f in found[:4])
    assert [f.key for f in found] == [f"t/{i:09d}" for i in range(5)]


def test_a_column_of_numbers_gives_failures_that_say_so(tmp_path: Path, write: Write) -> None:
    write("t.parquet", table_of_bytes(2, 2))
    found = read(plan(tmp_path, "other"))
    assert [(f.data, f.error) for f in found] == 2 * [(None, "column 'other' holds int, neither a path nor bytes")]


def test_a_column_that_is_not_there_names_those_that_are(tmp_path: Path, write: Write) -> None:
    write("t.parquet", table_of_bytes(2, 2))
    with pytest.raises(UsageError, match=r"t\.parquet has no column 'picture'; it has image, other"):
        plan(tmp_path, "picture")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not a table at all"])
def test_what_is_no_table_is_refused_when_it_is_planned(tmp_path: Path, write: Write, data: bytes) -> None:
    write("t.parquet", data)
    with pytest.raises(UsageError, match=r"t\.parquet is no Parquet file"):
        plan(tmp_path, "image")


def test_a_table_of_no_rows_is_no_unit(tmp_path: Path, write: Write) -> None:
    write("t.parquet", table_of_bytes(0, 4))
    assert plan(tmp_path, "image") == []


def test_a_table_that_is_gone_or_damaged_is_a_failure_and_values_that_name_no_file_are(
    tmp_path: Path, write: Write
) -> None:
    write("t.parquet", table_of_bytes(6, 6))
    (unit,) = plan(tmp_path, "image")
    data = (tmp_path / "t.parquet").read_bytes()
    write("t.parquet", b"PAR1" + bytes(len(data) - 8) + b"PAR1")
    broken = list(units.read_pictures(unit))
    assert len(broken) == 6
    assert all("the table is broken" in found.error for found in broken)
    with pytest.raises(UsageError, match="is no Parquet file"):
        plan(tmp_path, "image")
    (tmp_path / "t.parquet").unlink()
    assert [found.error for found in units.read_pictures(unit)] == 6 * ["there is no such file"]
    write("t.parquet", table_of({"path": ["a\0b", "x" * 300, "none.png"]}))
    found = read(plan(tmp_path, "path"))
    assert [f.data for f in found] == [None] * 3
    assert all(f.error for f in found)


def test_a_table_with_fewer_rows_or_without_the_column_has_a_row_for_each_that_was_planned(
    tmp_path: Path, write: Write
) -> None:
    write("t.parquet", table_of_bytes(6, 6))
    (unit,) = plan(tmp_path, "image")
    write("t.parquet", table_of_bytes(4, 6))
    found = list(units.read_pictures(unit))
    assert [f.data for f in found] == [b"\0", b"\1", b"\2", b"\3", None, None]
    assert {f.error for f in found[4:]} == {"there is no such row any more"}
    write("t.parquet", table_of({"other": [1, 2, 3, 4, 5, 6]}))
    assert {f.error for f in units.read_pictures(unit)} == {"the table has no column 'image' any more"}
    assert len({f.key for f in found}) == 6


def test_a_struct_of_bytes_and_a_path_is_a_picture(tmp_path: Path, write: Write) -> None:
    write("b.png", b"of the path")
    values = [
        {"bytes": b"of the bytes", "path": "a.png"},
        {"bytes": None, "path": "b.png"},
        {"bytes": None, "path": None},
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write("t.parquet", table_of({"image": pa.array(values, kind)}))
    assert [f.data for f in read(plan(tmp_path, "image"))] == [b"of the bytes", b"of the path", None]
