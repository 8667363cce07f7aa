from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corrdiff.errors import JobError, UsageError
from pipelines.files import retries, storage
from pipelines.inputs import units
from pipelines.inputs.units import Count, Found, Unit

Write = Callable[[str, bytes], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(name, data) puts a file under tmp_path."""

    def into(name: str, data: bytes) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)

    return into


def _tar(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _table(rows: int, group: int, column: str = "image") -> bytes:
    """Row i holds the byte i."""
    buffer = io.BytesIO()
    table = pa.table({column: [bytes([i]) for i in range(rows)], "other": list(range(rows))})
    pq.write_table(table, buffer, row_group_size=group)
    return buffer.getvalue()


def _paths(values: list[str | None]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"path": pa.array(values, pa.string())}), buffer)
    return buffer.getvalue()


def _plan(images: object, column: str | None = None, size: int = 4) -> list[Unit]:
    return list(units.plan_units(str(images), column, size))


def _read(plan: list[Unit]) -> list[Found]:
    return [found for unit in plan for found in units.read_pictures(unit)]


def test_files_are_dealt_to_units_in_order_and_the_last_one_is_smaller(tmp_path: Path, write: Write) -> None:
    for i in range(5):
        write(f"{i}.png", bytes([i]))
    plan = _plan(tmp_path, size=2)
    assert [(u.kind, u.keys, u.pictures) for u in plan] == [
        ("files", ["0", "1"], 2), ("files", ["2", "3"], 2), ("files", ["4"], 1),
    ]  # fmt: skip
    assert _read(plan) == [Found(str(i), str(tmp_path / f"{i}.png"), bytes([i])) for i in range(5)]


def test_samples_are_files() -> None:
    assert [(u.kind, u.pictures) for u in _plan("sample:", size=4)] == [("files", 4), ("files", 4), ("files", 2)]


def test_nothing_is_no_unit(tmp_path: Path, write: Write) -> None:
    write("notes.txt", b"x")
    write("table.parquet", _table(3, 3))
    assert _plan(tmp_path) == []


def test_planning_opens_neither_pictures_nor_shards(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.png", b"")
    write("b.tar", b"")

    def never(*_: object) -> bytes:
        raise AssertionError

    for name in ("read_bytes", "read_range", "open_ranges"):
        monkeypatch.setattr(storage, name, never)
    assert [u.kind for u in _plan(tmp_path)] == ["files", "shard"]


def test_tars_among_files_are_units_of_their_own(tmp_path: Path, write: Write) -> None:
    for name in ("a.png", "b.png", "d.png"):
        write(name, name.encode())
    write("c.tar", _tar({"x.png": b"x", "y.png": b"y"}))
    plan = _plan(tmp_path)
    assert [(u.kind, u.keys, u.pictures) for u in plan] == [
        ("files", ["a", "b"], 2), ("shard", ["c.tar"], 0), ("files", ["d"], 1),
    ]  # fmt: skip
    found = _read(plan)
    assert [f.data for f in found] == [b"a.png", b"b.png", b"x", b"y", b"d.png"]
    assert len({f.key for f in found}) == 5


def test_of_a_tar_only_pictures_are_taken_and_their_source_names_both(tmp_path: Path, write: Write) -> None:
    write("s.tar", _tar({"1.png": b"1", "1.json": b"{}", "1.cls": b"7", "sub/2.JPG": b"2", "readme": b"hi"}))
    found = _read(_plan(tmp_path / "s.tar"))
    assert [(f.source, f.data) for f in found] == [
        (f"{tmp_path}/s.tar/1.png", b"1"), (f"{tmp_path}/s.tar/sub/2.JPG", b"2"),
    ]  # fmt: skip


def test_members_of_one_stem_have_different_keys(tmp_path: Path, write: Write) -> None:
    write("s.tar", _tar({"a.png": b"1", "a.jpg": b"2", "b.c.png": b"3", "b.d.png": b"4"}))
    keys = [f.key for f in _read(_plan(tmp_path))]
    assert len(set(keys)) == 4
    assert not any("." in key.rpartition("/")[2] for key in keys)


def test_a_member_that_is_twice_in_a_tar_comes_twice(tmp_path: Path, write: Write) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for data in (b"1", b"22"):
            info = tarfile.TarInfo("a.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    write("s.tar", buffer.getvalue())
    found = _read(_plan(tmp_path))
    assert [f.data for f in found] == [b"1", b"22"]
    assert found[0].key != found[1].key


def test_a_shard_that_breaks_off_ends_with_that(tmp_path: Path, write: Write) -> None:
    data = _tar({"a.png": bytes(600), "b.png": bytes(600)})
    write("s.tar", data[: 512 + 1024 + 512 + 100])
    first, last = _read(_plan(tmp_path))
    assert first.data == bytes(600)
    assert last.data is None
    assert last.source == f"{tmp_path}/s.tar/b.png"
    assert last.error.startswith("the shard is broken")


@pytest.mark.parametrize("data", [b"", b"no tar " * 200, bytes(range(1, 200)) * 10])
def test_what_is_no_tar_is_one_failure(tmp_path: Path, write: Write, data: bytes) -> None:
    write("s.tar", data)
    (found,) = _read(_plan(tmp_path))
    assert found.data is None
    assert found.source == f"{tmp_path}/s.tar"
    assert found.error.startswith("the shard is broken")


def test_a_shard_that_is_gone_is_one_failure(tmp_path: Path, write: Write) -> None:
    write("s.tar", _tar({"a.png": b"1"}))
    plan = _plan(tmp_path)
    (tmp_path / "s.tar").unlink()
    assert [(f.data, f.error) for f in _read(plan)] == [(None, "there is no such file")]


def test_a_table_of_paths_is_cut_within_its_row_groups(tmp_path: Path, write: Write) -> None:
    for i in range(7):
        write(f"{i}.png", bytes([i]))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"path": [f"{i}.png" for i in range(7)]}), buffer, row_group_size=5)
    write("t.parquet", buffer.getvalue())
    plan = _plan(tmp_path, "path", size=3)
    assert [(u.group, u.first, u.pictures) for u in plan] == [(0, 0, 3), (0, 3, 2), (1, 0, 2)]
    assert [f.data for f in _read(plan)] == [bytes([i]) for i in range(7)]
    assert [f.key for f in _read(plan)] == [f"t/{i:09d}" for i in range(7)]


def test_a_row_group_of_bytes_is_a_unit(tmp_path: Path, write: Write) -> None:
    write("t.parquet", _table(12, group=5))
    plan = _plan(tmp_path, "image", size=3)
    assert [(u.group, u.first, u.pictures) for u in plan] == [(0, 0, 5), (1, 0, 5), (2, 0, 2)]
    assert {u.kind for u in plan} == {"table"}
    found = _read(plan)
    assert [f.data for f in found] == [bytes([i]) for i in range(12)]
    assert [f.key for f in found] == [f"t/{i:09d}" for i in range(12)]
    assert found[7].source == f"{tmp_path}/t.parquet, row 7"


def test_with_a_column_only_tables_are_taken(tmp_path: Path, write: Write) -> None:
    write("a.png", b"1")
    write("b.tar", _tar({"x.png": b"1"}))
    write("c.parquet", _table(2, 2))
    write("sub/d.parquet", _table(2, 2))
    found = _read(_plan(tmp_path, "image"))
    assert [f.key.rpartition("/")[0] for f in found] == ["c", "c", "sub/d", "sub/d"]


def test_planning_a_table_reads_its_end_and_a_unit_its_column(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [np.random.default_rng(i).bytes(1 << 20) for i in range(8)]
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": pictures, "other": pictures[::-1]}), buffer, row_group_size=2)
    write("t.parquet", buffer.getvalue())
    read: list[int] = []
    original = storage.read_range

    def counting(uri: str, start: int, end: int) -> bytes:
        read.append(end - start)
        return original(uri, start, end)

    monkeypatch.setattr(storage, "read_range", counting)
    plan = _plan(tmp_path, "image", size=2)
    assert len(plan) == 4
    assert sum(read) < 1 << 20
    read.clear()
    assert [f.data for f in _read(plan[2:3])] == pictures[4:6]
    assert sum(read) < 4 << 20


def test_paths_in_a_table_are_relative_to_it_or_whole(tmp_path: Path, write: Write) -> None:
    write("pictures/a.png", b"a")
    write("elsewhere/b.png", b"b")
    storage.write_bytes("memory://units-paths/c.png", b"c")
    whole = str(tmp_path / "elsewhere/b.png")
    write("t.parquet", _paths(["pictures/a.png", whole, "memory://units-paths/c.png"]))
    found = _read(_plan(tmp_path, "path"))
    assert [f.data for f in found] == [b"a", b"b", b"c"]
    assert [f.source for f in found] == ["pictures/a.png", whole, "memory://units-paths/c.png"]


def test_paths_that_lead_nowhere_are_failures_and_the_others_come(tmp_path: Path, write: Write) -> None:
    write("a.png", b"a")
    write("t.parquet", _paths(["gone.png", None, "nosuch://scheme/x.png", "", "a.png"]))
    found = _read(_plan(tmp_path, "path"))
    assert [f.data for f in found] == [None, None, None, None, b"a"]
    assert found[0].error == "there is no such file"
    assert found[1].error == "column 'path' holds nothing, neither a path nor bytes"
    assert "nosuch" in found[2].error
    assert all(f.error for f in found[:4])
    assert [f.key for f in found] == [f"t/{i:09d}" for i in range(5)]


def test_a_column_of_numbers_gives_failures_that_say_so(tmp_path: Path, write: Write) -> None:
    write("t.parquet", _table(2, 2))
    found = _read(_plan(tmp_path, "other"))
    assert [(f.data, f.error) for f in found] == 2 * [(None, "column 'other' holds int, neither a path nor bytes")]


def test_a_column_that_is_not_there_names_those_that_are(tmp_path: Path, write: Write) -> None:
    write("t.parquet", _table(2, 2))
    with pytest.raises(UsageError, match=r"t\.parquet has no column 'picture'; it has image, other"):
        _plan(tmp_path, "picture")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not a table at all"])
def test_what_is_no_table_is_refused_when_it_is_planned(tmp_path: Path, write: Write, data: bytes) -> None:
    write("t.parquet", data)
    with pytest.raises(UsageError, match=r"t\.parquet is no Parquet file"):
        _plan(tmp_path, "image")


def test_a_table_of_no_rows_is_no_unit(tmp_path: Path, write: Write) -> None:
    write("t.parquet", _table(0, 4))
    assert _plan(tmp_path, "image") == []


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNITS_A_FILE", 3)
    for i in range(7):
        write(f"in/{i}.png", bytes([i]))
    plan = _plan(tmp_path / "in", size=1)
    directory = str(tmp_path / "plan")
    assert units.write_plan(directory, iter(plan)) == Count(7, 7)
    assert storage.list_names(directory) == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert [units.read_unit(directory, i) for i in range(7)] == plan
    assert [u for file in range(3) for u in units.read_units(directory, file)] == plan


def test_units_of_every_kind_are_read_back_on_any_storage(tmp_path: Path, write: Write) -> None:
    write("a/p.png", b"1")
    write("a/s.tar", _tar({"x.png": b"1"}))
    write("b/t.parquet", _table(4, 2))
    plan = [*_plan(tmp_path / "a"), *_plan(tmp_path / "b", "image")]
    assert {u.kind for u in plan} == {"files", "shard", "table"}
    units.write_plan("memory://units-plan", iter(plan))
    assert units.read_units("memory://units-plan", 0) == plan


def test_the_number_of_pictures_is_known_without_shards_alone(tmp_path: Path, write: Write) -> None:
    write("in/a.png", b"1")
    write("in/t.parquet", _table(5, 2))
    images, out = tmp_path / "in", str(tmp_path / "plan")
    assert units.write_plan(out, iter(_plan(images))) == Count(1, 1)
    assert units.write_plan(out, iter(_plan(images, "image", 2))) == Count(3, 5)
    write("in/s.tar", b"")
    assert units.write_plan(out, iter(_plan(images))) == Count(2, None)
    assert units.write_plan(out, iter([])) == Count(0, 0)


def test_a_plan_is_written_as_its_units_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNITS_A_FILE", 2)
    directory = str(tmp_path / "plan")

    def slow() -> Iterator[Unit]:
        for i in range(6):
            assert len(storage.list_names(directory)) == i // 2
            yield Unit("files", [f"{i}.png"], [str(i)], pictures=1)

    units.write_plan(directory, slow())


def test_a_file_that_is_gone_or_a_directory_is_a_failure_and_the_others_come(tmp_path: Path, write: Write) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write(name, name.encode())
    plan = _plan(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").mkdir()
    found = _read(plan)
    assert [f.key for f in found] == ["a", "b", "c"]
    assert found[0] == Found("a", str(tmp_path / "a.png"), None, "there is no such file")
    assert found[1].data is None
    assert "directory" in found[1].error
    assert found[2].data == b"c.png"


def test_a_file_that_may_not_be_read_is_a_failure(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.png", b"1")
    plan = _plan(tmp_path)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "open_fs", refused)
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    (found,) = _read(plan)
    assert found.data is None
    assert "not permitted" in found.error


def test_storage_that_does_not_answer_is_no_pictures_fault(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.png", b"1")
    plan = _plan(tmp_path)

    def silent(*_: object) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(storage, "open_fs", silent)
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    with pytest.raises(JobError, match="no answer"):
        _read(plan)


def test_one_picture_of_a_unit_is_read_by_its_key(tmp_path: Path, write: Write) -> None:
    for name in ("a/p.png", "a/q.png"):
        write(name, name.encode())
    write("a/s.tar", _tar({"x.png": b"x", "y.png": b"y"}))
    write("b/t.parquet", _table(6, 3))
    plan = [*_plan(tmp_path / "a"), *_plan(tmp_path / "b", "image", 2)]
    for unit in plan:
        for found in units.read_pictures(unit):
            assert units.read_picture(unit, found.key) == found
    assert [units.read_picture(unit, "none") for unit in plan if unit.kind != "files"] == [None] * 3


def test_a_tar_whose_header_is_damaged_or_cut_off_says_so(tmp_path: Path, write: Write) -> None:
    whole = _tar({"a.png": b"1", "b.png": b"2", "c.png": b"3"})
    second = 1024
    damaged = bytearray(whole)
    damaged[second + 3] ^= 1
    cases = {"damaged": bytes(damaged), "cut_in_header": whole[: second + 100], "cut_before_header": whole[:second]}
    for name, data in cases.items():
        write(f"{name}.tar", data)
        found = list(units.read_pictures(units.Unit("shard", [f"{tmp_path}/{name}.tar"], ["s"])))
        assert [(f.key, f.data) for f in found] == [("s/a", b"1"), ("s/-", None)]
        assert "the shard is broken" in found[1].error


def test_keys_of_a_tar_are_unique_whatever_its_names(tmp_path: Path, write: Write) -> None:
    names = ["a.jpg", "a-2.png", "a.png", "a.webp", "a-1.png", "b\udcff.png"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in [*names, "a.jpg"]:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    write("s.tar", buffer.getvalue())
    found = _read(_plan(tmp_path))
    assert len({f.key for f in found}) == len(found) == 7
    assert all(f.key.encode() and f.source.encode() for f in found)


def test_a_tar_and_the_directory_that_it_was_unpacked_to_share_no_key(tmp_path: Path, write: Write) -> None:
    write("a.tar", _tar({"x.png": b"1"}))
    write("a/x.png", b"1")
    assert sorted(f.key for f in _read(_plan(tmp_path))) == ["a.tar/x", "a/x"]


def test_a_table_that_is_gone_or_damaged_is_a_failure_and_values_that_name_no_file_are(
    tmp_path: Path, write: Write
) -> None:
    write("t.parquet", _table(6, group=6))
    (unit,) = _plan(tmp_path, "image")
    data = (tmp_path / "t.parquet").read_bytes()
    write("t.parquet", b"PAR1" + bytes(len(data) - 8) + b"PAR1")
    (broken,) = units.read_pictures(unit)
    assert "the table is broken" in broken.error
    with pytest.raises(UsageError, match="is no Parquet file"):
        _plan(tmp_path, "image")
    (tmp_path / "t.parquet").unlink()
    (gone,) = units.read_pictures(unit)
    assert gone.error == "there is no such file"
    buffer = io.BytesIO()
    pq.write_table(pa.table({"path": ["a\0b", "x" * 300, "none.png"]}), buffer)
    write("t.parquet", buffer.getvalue())
    found = _read(_plan(tmp_path, "path"))
    assert [f.data for f in found] == [None] * 3
    assert all(f.error for f in found)
