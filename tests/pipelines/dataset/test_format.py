from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corrdiff import metrics
from corrdiff.errors import JobError, UsageError
from pipelines.dataset import format as compressed
from pipelines.dataset.format import INDEX, INDEX_COLUMNS, PLAN, Plan, Stage, columns
from pipelines.dataset.index import Member, find, read_member
from pipelines.dataset.parts import PictureFile, read_part
from pipelines.dataset.units import File, Record, create_record, finished_units, read_record, read_records, record_uri
from pipelines.files import retries, storage
from pipelines.files.tar import add_member

PLANNED = Plan({"codec": "a" * 64, "quality": 4}, (Stage("_plan/1", 3, 10),))


def _record(unit: int = 0, name: str = "a") -> Record:
    tar, parquet = File(f"part-{name}.tar", 10, "t" * 64), File(f"part-{name}.parquet", 20, "p" * 64)
    return Record(unit, tar, parquet, 4, 1, 300, 4096, {"read": 0.5, "write": 0.25})


def _write_index(place: str, members: list[Member], group: int) -> int:
    values = {name: [getattr(m, name) for m in members] for name in INDEX_COLUMNS}
    schema = pa.schema([columns().field(name) for name in INDEX_COLUMNS])
    buffer = io.BytesIO()
    pq.write_table(pa.table(values, schema), buffer, row_group_size=group)
    storage.write_bytes(storage.join(place, INDEX), buffer.getvalue())
    return len(buffer.getvalue())


def test_a_table_has_these_columns_in_this_order() -> None:
    """They are the format: other programs read these files."""
    assert [(field.name, str(field.type)) for field in columns()] == [
        ("key", "string"), ("source", "string"), ("width", "int32"), ("height", "int32"), ("bytes", "int64"),
        ("bpp", "double"), ("psnr_db", "double"), ("ms_ssim", "double"), ("lpips", "double"),
        ("texture_error", "double"), ("quality", "double"), ("quality_source", "string"), ("status", "string"),
        ("error", "string"), ("part", "string"), ("offset", "int64"),
    ]  # fmt: skip
    assert all(field.nullable for field in columns())


def test_every_metric_of_a_dataset_is_a_column_and_a_new_one_moves_none_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert compressed.metric_columns() == ("bpp", "psnr_db", "ms_ssim", "lpips", "texture_error")
    new = metrics.METRICS[0]._replace(name="new")
    monkeypatch.setattr(metrics, "DATASET_METRICS", (new, *metrics.DATASET_METRICS))
    assert compressed.metric_columns() == ("bpp", "psnr_db", "ms_ssim", "lpips", "new", "texture_error")


def test_neither_reading_nor_writing_parts_imports_torch() -> None:
    code = (
        "import sys, pipelines.compress.read, pipelines.compress.write, pipelines.decompress.stages;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plan_is_read_back_as_it_was_written(place: str) -> None:
    assert compressed.read_plan(place) is None
    assert compressed.claim_plan(place, PLANNED) == PLANNED
    assert compressed.read_plan(place) == PLANNED


def test_the_first_plan_counts(place: str) -> None:
    assert compressed.claim_plan(place, PLANNED) == PLANNED
    later = dataclasses.replace(PLANNED, stages=(Stage("_plan/2", 3, None),))
    assert compressed.claim_plan(place, later) == PLANNED
    assert compressed.read_plan(place) == PLANNED


def test_a_plan_of_something_else_is_refused_and_changes_nothing(place: str) -> None:
    compressed.claim_plan(place, PLANNED)
    other = dataclasses.replace(PLANNED, identity={"codec": "a" * 64, "quality": 5})
    with pytest.raises(UsageError, match=r"holds another compression \(quality: 4 there, 5 now\); choose another dir"):
        compressed.claim_plan(place, other)
    assert compressed.read_plan(place) == PLANNED


def test_a_plan_of_another_version_that_came_between_is_refused(place: str) -> None:
    value = {"format": "corrdiff-dataset-2", "identity": PLANNED.identity}
    storage.write_json(storage.join(place, PLAN), value)
    with pytest.raises(UsageError, match="of no format that this program reads"):
        compressed.claim_plan(place, PLANNED)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is damaged: not JSON"),
        (b"[]", "of no format that this program reads"),
        (b"{}", "of no format that this program reads"),
        (b'{"format": "corrdiff-dataset-2", "units": 1}', "of no format that this program reads"),
        (b'{"format": "corrdiff-dataset-1", "units": 1}', "is damaged"),
        (b'{"format": "corrdiff-dataset-1", "surprise": 1}', "is damaged"),
    ],
)
def test_a_plan_that_is_not_readable_is_refused(place: str, data: bytes, message: str) -> None:
    storage.write_bytes(storage.join(place, PLAN), data)
    with pytest.raises(UsageError, match=message):
        compressed.read_plan(place)


def test_there_is_no_plan_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert compressed.read_plan(str(tmp_path / "file")) is None


def test_a_record_is_read_back_as_it_was_written(place: str) -> None:
    record = _record(unit=7)
    assert create_record(place, record) == record
    assert read_record(place, 7) == record


def test_the_first_record_counts_and_the_second_writer_is_told(place: str) -> None:
    first, second = _record(name="a"), _record(name="b")
    assert create_record(place, first) == first
    assert create_record(place, second) == first
    assert read_record(place, 0) == first


def test_units_with_a_record_are_finished(place: str) -> None:
    assert finished_units(place) == []
    for unit in (12, 3, 100_000):
        create_record(place, _record(unit))
    assert sorted(finished_units(place)) == [3, 12, 100_000]
    assert [r.unit for r in read_records(place, [100_000, 3])] == [100_000, 3]


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"unit": 0, "tar": {}, "parquet": {}}', b"{"])
def test_a_damaged_record_is_named(place: str, data: bytes) -> None:
    storage.write_bytes(record_uri(place, 0), data)
    with pytest.raises(UsageError, match=r"00000\.json is damaged"):
        read_record(place, 0)


def test_another_codec_than_the_one_that_wrote_is_refused() -> None:
    compressed.check_codec("out", PLANNED, "codec", "a" * 64)
    with pytest.raises(UsageError, match=f"was compressed by codec {'a' * 16}, but codec is {'b' * 16}"):
        compressed.check_codec("out", PLANNED, "codec", "b" * 64)


def test_members_are_found_in_the_order_in_which_they_are_asked_for(place: str) -> None:
    members = [Member(f"k/{i:03d}", f"part-{i % 3}.tar", 1000 * i, 10 + i) for i in range(50)]
    _write_index(place, members, group=8)
    asked = [members[i] for i in (40, 3, 17)]
    assert find(place, [m.key for m in asked]) == asked
    assert find(place, [m.key for m in members]) == members
    assert find(place, ["k/007", "k/007"]) == [members[7], members[7]]


def test_a_key_that_is_not_in_the_index_is_named(place: str) -> None:
    _write_index(place, [Member("a", "part-0.tar", 512, 10)], group=8)
    with pytest.raises(UsageError, match=r"has no compressed picture 'b' \(2 of 3 are missing\)"):
        find(place, ["a", "b", "c"])


def test_without_an_index_nothing_is_found(place: str) -> None:
    with pytest.raises(UsageError, match="has no index: the compression is not complete"):
        find(place, ["a"])


def test_finding_a_picture_reads_a_small_part_of_a_large_index(tmp_path: Path, ranges_read: list[int]) -> None:
    rng = np.random.default_rng(0)
    members = [
        Member(f"{i:08d}-{rng.bytes(24).hex()}", f"part-{i >> 6:05d}.tar", int(rng.integers(1 << 40)), i)
        for i in range(40_000)
    ]
    size = _write_index(str(tmp_path), members, group=2000)
    assert size > 2 << 20
    assert find(str(tmp_path), [members[21_234].key]) == [members[21_234]]
    assert 0 < sum(ranges_read) < size / 4


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
    assert read_member(str(tmp_path), Member("k", "part.tar", 1536, 300)) == part[1536:1836]
    assert asked == [(1536, 1836)]


def test_a_member_of_a_part_that_is_gone_or_cut_is_an_error(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    member = Member("k", "part.tar", 1000, 100)
    with pytest.raises(JobError, match=r"part .*part\.tar is missing; copy it again"):
        read_member(place, member)
    for size in (1099, 1000, 500, 0):
        storage.write_bytes(storage.join(place, "part.tar"), bytes(size))
        with pytest.raises(JobError, match=r"is truncated: it ends at byte .* byte 1,100 is needed"):
            read_member(place, member)


def test_a_part_that_is_damaged_or_gone_is_named(tmp_path: Path) -> None:
    uri, part, buffer = str(tmp_path), tmp_path / "part-a.tar", io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add_member(tar, "k.crdf", b"abc")
        add_member(tar, "k.json", b"{}")
    part.write_bytes(buffer.getvalue())
    record = dataclasses.replace(_record(), tar=File(part.name, 10, hashlib.sha256(buffer.getvalue()).hexdigest()))
    assert read_part(uri, record) == [PictureFile("k", b"abc")]
    part.write_bytes(part.read_bytes().replace(b"abc", b"abd"))
    with pytest.raises(JobError, match=r"part .*\.tar is damaged: its SHA-256 is not the record's"):
        read_part(uri, record)
    part.unlink()
    with pytest.raises(JobError, match=r"part .*\.tar is missing; copy it again"):
        read_part(uri, record)
