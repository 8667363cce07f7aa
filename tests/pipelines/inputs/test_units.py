from __future__ import annotations

import http.server
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corrdiff.errors import JobError
from pipelines.files import retries, storage
from pipelines.inputs import units
from pipelines.inputs.units import Count, Found, PlannedUnits, Unit
from tests.support.inputs import plan, read, table_of, table_of_bytes, tar_of

Write = Callable[[str, bytes], None]


def test_files_are_dealt_to_units_in_order_and_the_last_one_is_smaller(tmp_path: Path, write: Write) -> None:
    for i in range(5):
        write(f"{i}.png", bytes([i]))
    planned = plan(tmp_path, size=2)
    assert [(u.kind, u.keys, u.pictures) for u in planned] == [
        ("files", ["0", "1"], 2), ("files", ["2", "3"], 2), ("files", ["4"], 1),
    ]  # fmt: skip
    assert read(planned) == [Found(str(i), str(tmp_path / f"{i}.png"), bytes([i])) for i in range(5)]


def test_samples_are_files() -> None:
    assert [(u.kind, u.pictures) for u in plan("sample:", size=4)] == [("files", 4), ("files", 4), ("files", 2)]


def test_nothing_is_no_unit(tmp_path: Path, write: Write) -> None:
    write("notes.txt", b"x")
    write("table.parquet", table_of_bytes(3, 3))
    assert plan(tmp_path) == []


def test_planning_opens_neither_pictures_nor_shards(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.png", b"")
    write("b.tar", b"")

    def never(*_: object) -> bytes:
        raise AssertionError

    for name in ("read_bytes", "read_range", "open_ranges"):
        monkeypatch.setattr(storage, name, never)
    assert [u.kind for u in plan(tmp_path)] == ["files", "shard"]


def test_tars_among_files_are_units_of_their_own(tmp_path: Path, write: Write) -> None:
    for name in ("a.png", "b.png", "d.png"):
        write(name, name.encode())
    write("c.tar", tar_of({"x.png": b"x", "y.png": b"y"}))
    planned = plan(tmp_path)
    assert [(u.kind, u.keys, u.pictures) for u in planned] == [
        ("files", ["a", "b"], 2), ("shard", ["c.tar"], 0), ("files", ["d"], 1),
    ]  # fmt: skip
    found = read(planned)
    assert [f.data for f in found] == [b"a.png", b"b.png", b"x", b"y", b"d.png"]
    assert len({f.key for f in found}) == 5


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNITS_A_FILE", 3)
    for i in range(7):
        write(f"in/{i}.png", bytes([i]))
    planned = plan(tmp_path / "in", size=1)
    directory = str(tmp_path / "planned")
    count = units.write_plan(directory, iter(planned))
    assert (count.units, count.pictures, len(count.files)) == (7, 7, 3)
    assert storage.list_names(directory) == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert [units.read_unit([PlannedUnits(directory)], i) for i in range(7)] == planned
    assert [u for file in range(3) for u in units.read_units(PlannedUnits(directory, count.files), file)] == planned


def test_units_of_every_kind_are_read_back_on_any_storage(tmp_path: Path, write: Write) -> None:
    write("a/p.png", b"1")
    write("a/s.tar", tar_of({"x.png": b"1"}))
    write("b/t.parquet", table_of_bytes(4, 2))
    planned = [*plan(tmp_path / "a"), *plan(tmp_path / "b", "image")]
    assert {u.kind for u in planned} == {"files", "shard", "table"}
    units.write_plan("memory://units-planned", iter(planned))
    assert units.read_units(PlannedUnits("memory://units-planned"), 0) == planned


def test_the_number_of_pictures_is_known_without_shards_alone(tmp_path: Path, write: Write) -> None:
    write("in/a.png", b"1")
    write("in/t.parquet", table_of_bytes(5, 2))
    images, out = tmp_path / "in", str(tmp_path / "planned")
    assert units.write_plan(out, iter(plan(images)))[:2] == (1, 1)
    assert units.write_plan(out, iter(plan(images, "image", 2)))[:2] == (3, 5)
    write("in/s.tar", b"")
    assert units.write_plan(out, iter(plan(images)))[:2] == (2, None)
    assert units.write_plan(out, iter([])) == Count(0, 0, ())


def test_a_plan_is_written_as_its_units_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNITS_A_FILE", 2)
    directory = str(tmp_path / "planned")

    def slow() -> Iterator[Unit]:
        for i in range(6):
            assert len(storage.list_names(directory)) == i // 2
            yield Unit("files", [f"{i}.png"], [str(i)], pictures=1)

    units.write_plan(directory, slow())


def test_a_file_that_is_gone_or_a_directory_is_a_failure_and_the_others_come(tmp_path: Path, write: Write) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write(name, name.encode())
    planned = plan(tmp_path)
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").unlink()
    (tmp_path / "b.png").mkdir()
    found = read(planned)
    assert [f.key for f in found] == ["a", "b", "c"]
    assert found[0] == Found("a", str(tmp_path / "a.png"), None, "there is no such file")
    assert found[1].data is None
    assert "directory" in found[1].error
    assert found[2].data == b"c.png"


def test_a_file_that_may_not_be_read_is_a_failure(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.png", b"1")
    planned = plan(tmp_path)

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage, "open_fs", refused)
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    (found,) = read(planned)
    assert found.data is None
    assert "not permitted" in found.error


def test_storage_that_does_not_answer_is_no_pictures_fault(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.png", b"1")
    planned = plan(tmp_path)

    def silent(*_: object) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(storage, "open_fs", silent)
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    with pytest.raises(JobError, match="no answer"):
        read(planned)


def test_one_picture_of_a_unit_is_read_by_its_key(tmp_path: Path, write: Write) -> None:
    for name in ("a/p.png", "a/q.png"):
        write(name, name.encode())
    write("a/s.tar", tar_of({"x.png": b"x", "y.png": b"y"}))
    write("b/t.parquet", table_of_bytes(6, 3))
    planned = [*plan(tmp_path / "a"), *plan(tmp_path / "b", "image", 2)]
    for unit in planned:
        for found in units.read_pictures(unit):
            assert units.read_picture(unit, found.key) == found
    assert [units.read_picture(unit, "none") for unit in planned if unit.kind != "files"] == [None] * 3


def test_a_plan_of_which_a_bit_is_flipped_or_a_file_is_gone_is_an_error(tmp_path: Path, write: Write) -> None:
    write("in/a.png", b"1")
    directory = str(tmp_path / "planned")
    planned = plan(tmp_path / "in")
    count = units.write_plan(directory, iter(planned))
    file = tmp_path / "planned" / "00000.parquet"
    whole = file.read_bytes()
    for byte in range(0, len(whole), 7):
        file.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1 << byte % 8]) + whole[byte + 1 :])
        with pytest.raises(JobError, match=r"00000\.parquet is damaged"):
            units.read_unit([PlannedUnits(directory, count.files)], 0)
    file.unlink()
    with pytest.raises(JobError, match=r"00000\.parquet is missing"):
        units.read_unit([PlannedUnits(directory, count.files)], 0)


def test_a_plan_of_an_older_version_is_read(tmp_path: Path, write: Write) -> None:
    write("in/a.png", b"1")
    planned = plan(tmp_path / "in")
    older = pa.schema([field for field in units.SCHEMA if field.name != "problems"])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([unit._asdict() for unit in planned], older), buffer)
    storage.write_bytes(str(tmp_path / "planned" / "00000.parquet"), buffer.getvalue())
    assert units.read_units(PlannedUnits(str(tmp_path / "planned")), 0) == planned


@pytest.mark.timeout(60)
def test_a_pipe_is_a_failure_and_is_not_waited_for(tmp_path: Path, write: Write) -> None:
    write("a.png", b"1")
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "c.tar")
    assert [(f.data, "no file" in f.error) for f in read(plan(tmp_path))] == [(b"1", False), (None, True), (None, True)]


def test_a_name_that_is_not_utf_8_is_a_failure_that_passes_through_the_plan(tmp_path: Path, write: Write) -> None:
    write("a.png", b"1")
    write(os.fsdecode(b"\xe9.png"), b"2")
    write(os.fsdecode(b"\xe9.tar"), tar_of({"a.png": b"3"}))
    directory = str(tmp_path / "planned")
    units.write_plan(directory, units.plan_units(str(tmp_path), None, 4))
    found = read(units.read_units(PlannedUnits(directory), 0))
    assert [f.data for f in found] == [b"1", None, None]
    assert {f.error for f in found[1:]} == {"its name is not UTF-8; rename it"}


@pytest.fixture
def web() -> Iterator[str]:
    """A server of the web: /200/x has the byte x, any other number is the answer."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code = int(self.path.split("/")[1])
            self.send_response(code)
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_whatever_a_web_address_answers_is_said_of_its_picture(
    tmp_path: Path, write: Write, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    gone = ["http://127.0.0.1:9/x.png", "http://no-such-host.invalid/x.png"]
    urls = [f"{web}/{code}/x.png" for code in (200, 403, 404, 410, 500, 503)]
    signed = f"{web}/403/x.png?X-Amz-Signature=planted&v=1"
    write("t.parquet", table_of({"url": [*urls, *gone, signed, f"{web}/200/last.png"]}))
    found = read(plan(tmp_path, "url", size=20))
    assert [f.data for f in found] == [b"x", *[None] * 8, b"x"]
    assert [f.error for f in found[1:6]] == [
        "the server answers 403", "there is no such file", "the server answers 410", "the server answers 500",
        "the server answers 503",
    ]  # fmt: skip
    assert all("cannot be read" in f.error for f in found[6:8])
    assert "planted" not in f"{found}"


def test_an_answer_that_no_second_attempt_helps_is_asked_for_once(monkeypatch: pytest.MonkeyPatch, web: str) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    with pytest.raises(JobError):
        storage.read_bytes(f"{web}/410/x", storage.PATIENT_ATTEMPTS)
    assert pauses == []
    with pytest.raises(JobError):
        storage.read_bytes(f"{web}/429/x", 3)
    assert len(pauses) == 2


def test_a_plan_without_checksums_that_is_damaged_is_one_sentence(tmp_path: Path, write: Write) -> None:
    write("in/a.png", b"1")
    directory = str(tmp_path / "planned")
    units.write_plan(directory, iter(plan(tmp_path / "in")))
    file = tmp_path / "planned" / "00000.parquet"
    whole, refused = file.read_bytes(), 0
    for bit in range(0, 8 * len(whole), 5):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            units.read_units(PlannedUnits(directory), 0)
        except JobError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
    assert refused > len(whole) // 5
