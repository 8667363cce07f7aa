from __future__ import annotations

import hashlib
import io
import json
import tarfile

import pyarrow.parquet as pq
import pytest

from corrdiff.errors import JobError
from pipelines.compress.chunk import Whole
from pipelines.compress.write import write_unit
from pipelines.dataset.format import columns
from pipelines.dataset.index import Member, read_member
from pipelines.dataset.parts import PictureFile, read_part
from pipelines.dataset.units import begin_unit, finished_units, read_record, record_uri, remove_orphans
from pipelines.files import storage
from pipelines.inputs.samples import Fields
from tests.support.compression import coded


def test_a_unit_becomes_a_part_and_a_record_of_it(place: str) -> None:
    done = [
        coded(2, b"c" * 700),
        coded(0, b"a" * 10),
        coded(3, None),
        coded(1, b"b" * 513, "deep/" + "n" * 150),
    ]
    record = write_unit(place, 4, Whole(done, {"read": 1.0}, {}), columns())
    assert record == read_record(place, 4)
    assert (record.unit, record.pictures, record.failures) == (4, 4, 1)
    assert (record.bytes, record.pixels) == (1223, 20 * (10 + 11 + 12))
    assert set(record.seconds) == {"read", "write"}
    for file in (record.tar, record.parquet):
        data = storage.read_bytes(storage.join(place, file.name))
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        assert file.name.startswith(f"part-00004-{file.sha256[:12]}.")
    rows = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(place, record.parquet.name))))
    assert rows.schema.equals(columns())
    listed = rows.to_pylist()
    assert [r["source"] for r in listed] == [f"/in/{i}.png" for i in range(4)]
    for row, data in zip(listed, [b"a" * 10, b"b" * 513, b"c" * 700], strict=False):
        member = Member(row["key"], row["part"], row["offset"], row["bytes"])
        assert read_member(place, member) == data
    assert (listed[3]["part"], listed[3]["offset"], listed[3]["error"]) == (None, None, "why")


def test_a_part_is_a_webdataset_in_the_order_of_the_unit(place: str) -> None:
    record = write_unit(place, 0, Whole([coded(1, b"bb"), coded(0, b"a")], {}, {}), columns())
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(storage.join(place, record.tar.name)))) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert list(files) == ["k0.crdf", "k0.crdf.json", "k1.crdf", "k1.crdf.json"]
    assert (files["k0.crdf"], files["k1.crdf"]) == (b"a", b"bb")
    assert json.loads(files["k1.crdf.json"]) == {
        "key": "k1", "source": "/in/1.png", "width": 11, "height": 20, "changes": ["rotated"],
    }  # fmt: skip


def test_the_same_pictures_give_the_same_files_whatever_order_they_come_in(place: str) -> None:
    done = [coded(i, bytes([i]) * 100) for i in range(4)]
    first = write_unit(storage.join(place, "1"), 0, Whole(done, {}, {}), columns())
    second = write_unit(storage.join(place, "2"), 0, Whole(done[::-1], {}, {}), columns())
    assert (first.tar, first.parquet) == (second.tar, second.parquet)


def test_a_unit_that_is_done_twice_keeps_its_first_record_and_both_parts(place: str) -> None:
    first = write_unit(place, 0, Whole([coded(0, b"first")], {}, {}), columns())
    second = write_unit(place, 0, Whole([coded(0, b"second")], {}, {}), columns())
    assert second == first == read_record(place, 0)
    assert read_part(place, second) == [PictureFile("k0", b"first")]
    assert len([n for n in storage.list_names(place) if n.startswith("part-")]) == 4


def test_a_unit_of_failures_alone_is_written(place: str) -> None:
    record = write_unit(place, 0, Whole([coded(0, None), coded(1, None)], {}, {}), columns())
    assert (record.pictures, record.failures, record.bytes, record.pixels) == (2, 2, 0, 0)
    assert read_part(place, record) == []


def test_there_is_no_record_before_all_files_of_the_unit(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = storage.write_once

    def no_tables(uri: str, data: bytes) -> None:
        if uri.endswith(".parquet"):
            raise JobError("full")
        original(uri, data)

    monkeypatch.setattr(storage, "write_once", no_tables)
    with pytest.raises(JobError, match="full"):
        write_unit(place, 0, Whole([coded(0, b"a")], {}, {}), columns())
    assert finished_units(place) == []


def test_what_a_worker_wrote_in_vain_is_removed_and_nothing_else(place: str) -> None:
    record = write_unit(place, 0, Whole([coded(0, b"first")], {}, {}), columns())
    write_unit(place, 0, Whole([coded(0, b"second")], {}, {}), columns())
    others = {name: name.encode() for name in (
        "part-0000.tar", "part-notes/thesis.txt", "part-00000-1234.snappy.parquet", "part-00000-0123456789ab.tar",
        "part-00001-0123456789ab.parquet", "_units/notes.txt", "_writing.txt", "part-[0].tar", "summary.json.bak",
    )}  # fmt: skip
    for name, data in others.items():
        storage.write_bytes(storage.join(place, name), data)
    remove_orphans(place)
    assert {name: storage.read_bytes(storage.join(place, name)) for name in others} == others
    parts = [name for name in storage.list_names(place) if name.startswith("part-0")]
    assert sorted(parts) == sorted(
        [record.tar.name, record.parquet.name, *(n for n in others if n.startswith("part-0"))]
    )
    assert "_writing" not in storage.list_names(place)
    assert read_part(place, record) == [PictureFile("k0", b"first")]


def test_a_file_that_is_called_as_a_part_is_left_alone_and_named(place: str) -> None:
    done = Whole([coded(0, b"a")], {}, {})
    name = write_unit(storage.join(place, "elsewhere"), 0, done, columns()).tar.name
    storage.write_bytes(storage.join(place, name), b"somebody's")
    with pytest.raises(JobError, match=rf"{name} exists, and is none of this job's"):
        write_unit(place, 0, done, columns())
    assert storage.read_bytes(storage.join(place, name)) == b"somebody's"
    remove_orphans(place)
    assert storage.read_bytes(storage.join(place, name)) == b"somebody's"


def test_a_part_that_was_there_before_with_the_same_bytes_is_taken_and_never_removed(place: str) -> None:
    done = Whole([coded(0, b"a")], {}, {})
    before = write_unit(storage.join(place, "elsewhere"), 0, done, columns())
    for file in (before.tar, before.parquet):
        storage.write_bytes(
            storage.join(place, file.name), storage.read_bytes(storage.join(place, "elsewhere", file.name))
        )
    record = write_unit(place, 0, done, columns())
    assert record.tar == before.tar
    storage.remove_file(record_uri(place, 0))
    begin_unit(place, 0, [record.tar.name, record.parquet.name])
    remove_orphans(place)
    assert {before.tar.name, before.parquet.name} <= set(storage.list_names(place))


def test_what_is_left_out_is_in_the_record(place: str) -> None:
    record = write_unit(place, 0, Whole([coded(0, b"a")], {}, {".json": 3}), columns())
    assert record.left_out == read_record(place, 0).left_out == {".json": 3}


def test_what_was_inside_a_picture_lies_beside_it_and_is_no_file_that_was_found(place: str) -> None:
    fields = Fields((("txt", b"a caption"),), metadata=(("picture.exif", b"II*\0"),))
    record = write_unit(place, 0, Whole([coded(0, b"a")._replace(fields=fields)], {}, {}), columns())
    assert record.members == 1
    (file,) = read_part(place, record)
    assert dict(file.fields.members) == {"txt": b"a caption", "picture.exif": b"II*\0"}
