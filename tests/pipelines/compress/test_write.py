from __future__ import annotations

import hashlib
import io
import json
import tarfile

import pyarrow.parquet as pq
import pytest

from corrdiff.errors import JobError
from pipelines.compress.write import write_unit
from pipelines.dataset import format as compressed
from pipelines.dataset.format import Member, PictureFile, columns
from pipelines.files import storage
from tests.support.compression import coded


def test_a_unit_becomes_a_part_and_a_record_of_it(place: str) -> None:
    done = [
        coded(2, b"c" * 700),
        coded(0, b"a" * 10),
        coded(3, None),
        coded(1, b"b" * 513, "deep/" + "n" * 150),
    ]
    record = write_unit(place, 4, done, {"read": 1.0}, columns())
    assert record == compressed.read_record(place, 4)
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
        assert compressed.read_member(place, member) == data
    assert (listed[3]["part"], listed[3]["offset"], listed[3]["error"]) == (None, None, "why")


def test_a_part_is_a_webdataset_in_the_order_of_the_unit(place: str) -> None:
    record = write_unit(place, 0, [coded(1, b"bb"), coded(0, b"a")], {}, columns())
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(storage.join(place, record.tar.name)))) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert list(files) == ["k0.crdf", "k0.json", "k1.crdf", "k1.json"]
    assert (files["k0.crdf"], files["k1.crdf"]) == (b"a", b"bb")
    assert json.loads(files["k1.json"]) == {
        "key": "k1", "source": "/in/1.png", "width": 11, "height": 20, "changes": ["rotated"],
    }  # fmt: skip


def test_the_same_pictures_give_the_same_files_whatever_order_they_come_in(place: str) -> None:
    done = [coded(i, bytes([i]) * 100) for i in range(4)]
    first = write_unit(storage.join(place, "1"), 0, done, {}, columns())
    second = write_unit(storage.join(place, "2"), 0, done[::-1], {}, columns())
    assert (first.tar, first.parquet) == (second.tar, second.parquet)


def test_a_unit_that_is_done_twice_keeps_its_first_record_and_both_parts(place: str) -> None:
    first = write_unit(place, 0, [coded(0, b"first")], {}, columns())
    second = write_unit(place, 0, [coded(0, b"second")], {}, columns())
    assert second == first == compressed.read_record(place, 0)
    assert compressed.read_part(place, second) == [PictureFile("k0", b"first")]
    assert len([n for n in storage.list_names(place) if n.startswith("part-")]) == 4


def test_a_unit_of_failures_alone_is_written(place: str) -> None:
    record = write_unit(place, 0, [coded(0, None), coded(1, None)], {}, columns())
    assert (record.pictures, record.failures, record.bytes, record.pixels) == (2, 2, 0, 0)
    assert compressed.read_part(place, record) == []


def test_there_is_no_record_before_all_files_of_the_unit(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = storage.write_bytes

    def no_tables(uri: str, data: bytes, attempts: int = 1) -> None:
        if uri.endswith(".parquet"):
            raise JobError("full")
        original(uri, data, attempts)

    monkeypatch.setattr(storage, "write_bytes", no_tables)
    with pytest.raises(JobError, match="full"):
        write_unit(place, 0, [coded(0, b"a")], {}, columns())
    assert compressed.finished_units(place) == []
