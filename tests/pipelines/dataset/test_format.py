from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corrdiff.errors import JobError, UsageError
from pipelines.dataset import format as compressed
from pipelines.dataset.format import COLUMNS, INDEX, INDEX_COLUMNS, PLAN, SUMMARY, File, Member, Plan, Record
from pipelines.files import retries, storage

PLANNED = Plan({"codec": "a" * 64, "quality": 4}, "_plan/1", units=3, pictures=10)


def _record(unit: int = 0, name: str = "a") -> Record:
    tar, parquet = File(f"part-{name}.tar", 10, "t" * 64), File(f"part-{name}.parquet", 20, "p" * 64)
    return Record(unit, tar, parquet, 4, 1, 300, 4096, {"read": 0.5, "write": 0.25})


def _write_index(out: str, members: list[Member], group: int) -> int:
    columns = {name: [getattr(m, name) for m in members] for name in INDEX_COLUMNS}
    schema = pa.schema([COLUMNS.field(name) for name in INDEX_COLUMNS])
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema), buffer, row_group_size=group)
    storage.write_bytes(storage.join(out, INDEX), buffer.getvalue())
    return len(buffer.getvalue())


@pytest.fixture(params=["local", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a dataset."""
    return str(tmp_path / "out") if request.param == "local" else f"memory://compressed{tmp_path}"


def test_a_plan_is_read_back_as_it_was_written(out: str) -> None:
    assert compressed.read_plan(out) is None
    assert compressed.create_plan(out, PLANNED)
    assert compressed.read_plan(out) == PLANNED


def test_the_first_plan_counts(out: str) -> None:
    assert compressed.create_plan(out, PLANNED)
    assert not compressed.create_plan(out, dataclasses.replace(PLANNED, directory="_plan/2", pictures=None))
    assert compressed.read_plan(out) == PLANNED


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"{", "is damaged: not JSON"),
        (b"[]", "of no format that this program reads"),
        (b"{}", "of no format that this program reads"),
        (b'{"format": "corrdiff-dataset-2", "units": 1}', "of no format that this program reads"),
        (b'{"format": "corrdiff-dataset-1", "units": 1}', "is damaged"),
        (b'{"format": "corrdiff-dataset-1", "surprise": 1}', "is damaged"),
    ],
)
def test_a_plan_that_is_not_readable_is_refused(out: str, data: bytes, said: str) -> None:
    storage.write_bytes(storage.join(out, PLAN), data)
    with pytest.raises(UsageError, match=said):
        compressed.read_plan(out)


def test_there_is_no_plan_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert compressed.read_plan(str(tmp_path / "file")) is None


def test_a_record_is_read_back_as_it_was_written(out: str) -> None:
    record = _record(unit=7)
    assert compressed.create_record(out, record) == record
    assert compressed.read_record(out, 7) == record


def test_the_first_record_counts_and_the_second_writer_is_told(out: str) -> None:
    first, second = _record(name="a"), _record(name="b")
    assert compressed.create_record(out, first) == first
    assert compressed.create_record(out, second) == first
    assert compressed.read_record(out, 0) == first


def test_units_with_a_record_are_finished(out: str) -> None:
    assert compressed.finished_units(out) == []
    for unit in (12, 3, 100_000):
        compressed.create_record(out, _record(unit))
    assert sorted(compressed.finished_units(out)) == [3, 12, 100_000]
    assert [r.unit for r in compressed.read_records(out, [100_000, 3])] == [100_000, 3]


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"unit": 0, "tar": {}, "parquet": {}}', b"{"])
def test_a_damaged_record_is_named(out: str, data: bytes) -> None:
    storage.write_bytes(compressed.record_uri(out, 0), data)
    with pytest.raises(UsageError, match=r"00000\.json is damaged"):
        compressed.read_record(out, 0)


def test_a_dataset_is_complete_when_it_has_a_summary(out: str) -> None:
    with pytest.raises(UsageError, match=r"no compressed dataset at .*: there is no plan\.json"):
        compressed.read_complete(out)
    compressed.create_plan(out, PLANNED)
    compressed.create_record(out, _record(1))
    with pytest.raises(UsageError, match="is not complete: 1 of 3 units are done; run 'corrdiff compress' again"):
        compressed.read_complete(out)
    storage.write_json(storage.join(out, SUMMARY), {"pictures": 10})
    assert compressed.read_complete(out) == (PLANNED, {"pictures": 10})


def test_another_codec_than_the_one_that_wrote_is_refused() -> None:
    compressed.check_codec("out", PLANNED, "codec", "a" * 64)
    with pytest.raises(UsageError, match=f"was compressed by codec {'a' * 16}, but codec is {'b' * 16}"):
        compressed.check_codec("out", PLANNED, "codec", "b" * 64)


def test_members_are_found_in_the_order_in_which_they_are_asked_for(out: str) -> None:
    members = [Member(f"k/{i:03d}", f"part-{i % 3}.tar", 1000 * i, 10 + i) for i in range(50)]
    _write_index(out, members, group=8)
    asked = [members[i] for i in (40, 3, 17)]
    assert compressed.find(out, [m.key for m in asked]) == asked
    assert compressed.find(out, [m.key for m in members]) == members
    assert compressed.find(out, ["k/007", "k/007"]) == [members[7], members[7]]


def test_a_key_that_is_not_in_the_index_is_named(out: str) -> None:
    _write_index(out, [Member("a", "part-0.tar", 512, 10)], group=8)
    with pytest.raises(UsageError, match=r"has no compressed picture 'b' \(2 of 3 are missing\)"):
        compressed.find(out, ["a", "b", "c"])


def test_without_an_index_nothing_is_found(out: str) -> None:
    with pytest.raises(UsageError, match="has no index: the compression is not complete"):
        compressed.find(out, ["a"])


def test_finding_a_picture_reads_a_small_part_of_a_large_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    members = [
        Member(f"{i:08d}-{rng.bytes(24).hex()}", f"part-{i >> 6:05d}.tar", int(rng.integers(1 << 40)), i)
        for i in range(40_000)
    ]
    size = _write_index(str(tmp_path), members, group=2000)
    assert size > 2 << 20
    read: list[int] = []
    original = storage.read_range

    def counting(uri: str, start: int, end: int) -> bytes:
        read.append(end - start)
        return original(uri, start, end)

    monkeypatch.setattr(storage, "read_range", counting)
    assert compressed.find(str(tmp_path), [members[21_234].key]) == [members[21_234]]
    assert 0 < sum(read) < size / 4


def test_reading_a_member_asks_for_its_bytes_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = bytes(range(256)) * 40
    (tmp_path / "part.tar").write_bytes(part)
    fs, _ = storage.open_fs(str(tmp_path))
    asked: list[tuple[int | None, int | None]] = []
    original = type(fs).cat_file

    def spying(self: object, path: str, start: int | None = None, end: int | None = None, **kwargs: object) -> bytes:
        asked.append((start, end))
        data: bytes = original(self, path, start=start, end=end, **kwargs)
        return data

    monkeypatch.setattr(type(fs), "cat_file", spying)
    assert compressed.read_member(str(tmp_path), Member("k", "part.tar", 1536, 300)) == part[1536:1836]
    assert asked == [(1536, 1836)]


def test_a_member_of_a_part_that_is_gone_or_cut_is_an_error(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    member = Member("k", "part.tar", 1000, 100)
    with pytest.raises(JobError, match=r"part .*part\.tar is missing; copy it again"):
        compressed.read_member(out, member)
    for size in (1099, 1000, 500, 0):
        storage.write_bytes(storage.join(out, "part.tar"), bytes(size))
        with pytest.raises(JobError, match=r"is truncated: it ends at byte .* byte 1,100 is needed"):
            compressed.read_member(out, member)
