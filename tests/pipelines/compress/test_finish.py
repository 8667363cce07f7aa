"""A compression from its plan to its summary, without the stages between: what was there stays, all is counted."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrdiff.errors import JobError, UsageError
from pipelines.compress import job
from pipelines.compress.chunk import Whole
from pipelines.compress.claim import claim
from pipelines.compress.config import CompressConfig
from pipelines.compress.finish import _finish
from pipelines.compress.write import write_unit
from pipelines.dataset.format import Plan, Stage, columns
from pipelines.dataset.summary import read_summary
from pipelines.dataset.units import begin_unit
from pipelines.files import storage
from pipelines.inputs import units
from tests.support.compression import coded
from tests.support.inputs import tar_of

LOOK_ALIKES = [
    "part-0000.tar", "part-notes/thesis.txt", "part-00000-1234.snappy.parquet", "part-00000-0123456789ab.tar",
    "part-00001-0123456789ab.parquet", "part-[0].tar", "part-*.tar", "_units/00000.json", "_units/notes.txt", "_units",
    "_plan/0123456789ab/00000.parquet", "_plan/x", "_writing/00000-0123456789abcdef.json", "_writing",
    "_index/keys.parquet", "_index/x", "summary.json", "summary.json.bak", "plan.json~", "rate.json", "untracked/a",
    "a::b", "x.png", ".corrdiff-1.tmp",
]  # fmt: skip


def _files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def _compress(images: str, out: str, lost: bool) -> Plan:
    """What a job does, `lost` with a worker's part in vain."""
    plan = claim(images, out, "f" * 64, CompressConfig(unit=2))
    for unit in range(plan.units):
        left_out: Counter[str] = Counter()
        found = list(units.read_pictures(units.read_unit(plan.planned(out), unit), left_out=left_out))
        done = [coded(i, f.data, f.key)._replace(fields=f.fields) for i, f in enumerate(found)]
        if lost:
            write_unit(f"{out}-elsewhere", unit, Whole(done, {}, {}), columns())
            begin_unit(out, unit, [f"part-{unit:05d}-{'e' * 12}.tar"])
            storage.write_once(storage.join(out, f"part-{unit:05d}-{'e' * 12}.tar"), b"in vain")
        write_unit(out, unit, Whole(done, {}, dict(left_out)), columns())
    _finish(out, plan)
    return plan


@settings(max_examples=40)
@given(names=st.sets(st.sampled_from(LOOK_ALIKES), max_size=6), lost=st.booleans())
def test_what_was_there_before_a_job_is_there_after_it_byte_for_byte(names: set[str], lost: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        images, out = Path(directory) / "in", Path(directory) / "out"
        for i in range(3):
            storage.write_bytes(str(images / f"{i}.png"), b"x")
        out.mkdir()
        for name in sorted(names, reverse=True):  # of "_units" and what would be in it, what is in it
            if not (out / name).exists():
                storage.write_bytes(str(out / name), name.encode())
        before = _files(out)
        try:
            _compress(str(images), str(out), lost)
        except (UsageError, JobError):
            assert _files(out) == before
            return
        after = _files(out)
        assert {name: after.get(name) for name in before} == before
        ours = {name for name in after.keys() - before.keys() if name.startswith("part-")}
        assert len(ours) == 4
        assert "in vain" not in {data.decode(errors="replace") for data in after.values()}


@settings(max_examples=25)
@given(
    names=st.sets(st.sampled_from([
        "a.png", "a.cls", "a.seg.npy", "a.seg.png", "b/c.JPG", "b/c.txt", "d.txt", "e", "._a.png", "__MACOSX/a.png",
        "b/f.heic",
    ])),
    members=st.lists(st.sampled_from([
        "a.png", "a.txt", "a.jpg", "a.seg.png", "b.json", "._a.png", "c", "d/e.jpe", "a\0b.png", "a.crdf",
    ]), max_size=8),
)  # fmt: skip
def test_what_is_found_is_pictures_what_travels_with_them_and_what_was_left_out(
    names: set[str], members: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        images, out = Path(directory) / "in", f"{directory}/out"
        for name in names:
            storage.write_bytes(str(images / name), b"x")
        storage.write_bytes(str(images / "s.tar"), tar_of([(name, b"x") for name in members]))
        storage.write_bytes(str(images / "last.png"), b"x")
        _compress(str(images), out, lost=False)
        summary = read_summary(out)
        assert summary is not None
        pictures = summary.pictures - summary.failures  # all that fails is a sample without a picture
        assert pictures + summary.members + sum(summary.left_out.values()) == len(names) + len(members) + 1


def test_a_part_that_is_gone_is_said(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "in" / "a.png"), b"x")
    plan = _compress(str(tmp_path / "in"), str(tmp_path / "out"), lost=False)
    job._check_parts(str(tmp_path / "out"), plan)
    (part,) = (tmp_path / "out").glob("part-*.tar")
    part.unlink()
    with pytest.raises(JobError, match=rf"1 finished parts of .* are missing, such as {part.name}; copy them again"):
        _finish(str(tmp_path / "out"), plan)
    with pytest.raises(JobError, match=r"1 finished units of .* have lost a part, such as unit 0"):
        job._check_parts(str(tmp_path / "out"), plan)


def test_units_of_before_whose_qualities_are_whole_numbers_make_one_table_with_those_of_now(tmp_path: Path) -> None:
    now, out = columns(), str(tmp_path)
    before = now.set(now.get_field_index("quality"), pa.field("quality", pa.int8()))
    for unit, (schema, quality) in enumerate(((before, 4), (now, 4.0), (now, 4.0625))):
        done = coded(0, b"file", key=f"k{unit}")
        done.row.update(quality=quality, psnr_db=30.0, bpp=0.1)
        write_unit(out, unit, Whole([done], {}, {}), schema)
    summary, shown = _finish(out, Plan({"codec": "c"}, (Stage("_plan/1", 3, 3),)))
    assert summary.qualities == {"4": 2, "4.0625": 1}
    assert sorted(row["quality"] for row in shown.worst) == [4.0, 4.0, 4.0625]
    assert summary.percentiles["psnr_db"]["mean"] == pytest.approx(30.0)
