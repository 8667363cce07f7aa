"""A compression that grows and tries again what failed: each good picture once, each failure with its newest reason."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrdiff.errors import UsageError
from pipelines.compress import grow
from pipelines.compress.chunk import Done, Whole
from pipelines.compress.claim import claim
from pipelines.compress.config import CompressConfig
from pipelines.compress.finish import _finish
from pipelines.compress.tally import Tally
from pipelines.compress.write import write_unit
from pipelines.dataset import format as compressed
from pipelines.dataset.attempts import read_again, read_attempts, read_newest
from pipelines.dataset.format import Plan, columns, read_plan
from pipelines.dataset.index import all_keys
from pipelines.dataset.parts import read_part
from pipelines.dataset.summary import read_complete, read_summary
from pipelines.dataset.units import finished_units, read_records
from pipelines.files import storage
from pipelines.inputs import units
from pipelines.inputs.units import Found
from tests.support.compression import coded
from tests.support.inputs import table_of, tar_of

CONFIG = CompressConfig(unit=2)


def _coded(place: int, found: Found) -> Done:
    """What comes of a picture: those that begin with "bad" fail, and say so."""
    good = found.data is not None and not found.data.startswith(b"bad")
    done = coded(place, found.data if good else None, found.key)
    error = "" if good else found.error or (found.data or b"").decode()
    return done._replace(row=done.row | {"source": found.source, "error": error}, fields=found.fields)


def _run(out: str, plan: Plan, at_most: int = 1000) -> None:
    """Do some of the units that are missing, and what comes last where that was all."""
    missing = sorted(set(range(plan.units)) - set(finished_units(out)))
    for number in missing[:at_most]:
        unit = units.read_unit(plan.planned(out), number)
        left_out: Counter[str] = Counter()
        found = read_again(out, unit) if unit.again else units.read_pictures(unit, left_out=left_out)
        done = [_coded(place, each) for place, each in enumerate(found)]
        write_unit(out, number, Whole(done, {}, dict(left_out)), columns())
    summary = read_summary(out)
    if len(missing) <= at_most and (summary is None or not summary.covers(plan)):
        _finish(out, plan)


def _begin(images: Path, out: str, config: CompressConfig = CONFIG) -> Plan:
    return claim(str(images), out, "f" * 64, config)


def _good(out: str) -> dict[str, bytes]:
    """Key -> file of every compressed picture of a finished dataset, by its parts and by its index."""
    plan, summary = read_complete(out)
    files = [file for record in read_records(out, range(plan.units)) for file in read_part(out, record)]
    assert len({file.key for file in files}) == len(files) == summary.pictures - summary.failures
    assert sorted(file.key for file in files) == list(all_keys(out))
    return {file.key: file.data for file in files}


def _failed(out: str) -> dict[str, str]:
    """Key -> reason of what failed at its last attempt."""
    plan, summary = read_complete(out)
    newest = read_newest(out, read_records(out, range(plan.units)), read_attempts(out, plan))
    rows = [row for _, table in newest for row in table.to_pylist() if row["status"] == "failed"]
    assert len({row["key"] for row in rows}) == len(rows) == summary.failures
    return {row["key"]: row["error"] for row in rows}


def _parts(out: str) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in Path(out).glob("part-*")}


ACTIONS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 9), st.sampled_from([b"good", b"better", b"bad one", b"bad 2"])),
    st.tuples(st.just("remove"), st.integers(0, 9), st.just(b"")),
    st.tuples(st.just("run"), st.integers(0, 4), st.just(b"")),
    st.tuples(st.just("extend"), st.just(0), st.just(b"")),
    st.tuples(st.just("retry"), st.just(0), st.sampled_from([b"", b"one", b"bad N", b"no such file"])),
)


@settings(max_examples=25)
@given(actions=st.lists(ACTIONS, max_size=10), tars=st.booleans())
def test_whatever_is_done_in_whatever_order_each_picture_counts_once(
    actions: list[tuple[str, int, bytes]], tars: bool
) -> None:
    _do(actions, tars)


@pytest.mark.slow
@settings(max_examples=300)
@given(actions=st.lists(ACTIONS, max_size=24), tars=st.booleans())
def test_long_sequences_of_it(actions: list[tuple[str, int, bytes]], tars: bool) -> None:
    _do(actions, tars)


def _do(actions: list[tuple[str, int, bytes]], tars: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        images, out = Path(directory) / "in", f"{directory}/out"
        names = {n: f"{n}.tar" if tars and n > 6 else f"{n}.png" for n in range(10)}

        def write(number: int, data: bytes) -> None:
            whole = tar_of([(f"{i}.png", data if i else b"first") for i in range(3)])
            cut = whole[:1200] if data == b"bad 2" else whole  # it breaks off in its second picture
            storage.write_bytes(str(images / names[number]), cut if names[number].endswith("tar") else data)

        for number in (0, 1, 7):
            write(number, b"bad one" if number == 1 else b"good")
        plan = _begin(images, out)
        parts: dict[str, bytes] = {}
        for action, number, data in actions:
            if action == "write":
                write(number, data)
            elif action == "remove":
                (images / names[number]).unlink(missing_ok=True)
            elif action == "run":
                _run(out, plan, number)
            elif action == "extend":
                plan = grow.extend(out, plan, CONFIG, print)
            else:
                plan = grow.retry(out, plan, CONFIG, data.decode(), print)
            assert {name: _parts(out).get(name) for name in parts} == parts
            parts = _parts(out)
            assert read_plan(out) == plan
        _run(out, plan)
        good, failed = _good(out), _failed(out)
        assert not good.keys() & failed.keys()
        plan = grow.retry(out, grow.extend(out, plan, CONFIG, print), CONFIG, "", print)
        _run(out, plan)
        plan = grow.retry(out, plan, CONFIG, "", print)
        _run(out, plan)
        tally = Tally(plan, read_records(out, range(plan.units)))
        assert (tally.pictures, tally.failures) == (len(_good(out)) + len(_failed(out)), len(_failed(out)))
        assert good.items() <= _good(out).items()
        _check(images, _good(out), _failed(out))


def _check(images: Path, good: dict[str, bytes], failed: dict[str, str]) -> None:
    """What there is now was compressed once it could be, or fails for what is wrong with it now."""
    there = {path.stem: path.read_bytes() for path in images.glob("*.png")}
    for key, data in there.items():
        if data.startswith(b"bad"):
            assert key in good or failed[key] == data.decode()
        else:
            assert key in good
    for key in failed.keys() - there.keys():
        assert "/" in key or failed[key] == "there is no such file"
    for path in images.glob("*.tar"):
        data = path.read_bytes()
        if len(data) > 1200:
            bad = {f"{path.name}/{i}" for i in (1, 2)} if b"bad" in data else set()
            keys = {f"{path.name}/{i}" for i in range(3)}
            assert keys <= good.keys() | (bad & failed.keys())
            assert f"{path.name}/-" not in failed


def _write(place: Path, **files: bytes) -> None:
    for name, data in files.items():
        storage.write_bytes(str(place / name.replace("_", ".")), data)


def test_new_pictures_are_added_and_old_parts_are_left_as_they_are(tmp_path: Path) -> None:
    images, out, said = tmp_path / "in", str(tmp_path / "out"), list[str]()
    _write(images, b_png=b"1", b_txt=b"a caption", d_png=b"2")
    plan = _begin(images, out)
    _run(out, plan)
    before = _parts(out)
    _write(images, a_png=b"3", d_bmp=b"4", e_png=b"5", e_txt=b"x", f_heic=b"6")
    plan = grow.extend(out, plan, CONFIG, said.append)
    assert said == [f"new at {images}: 3 pictures"]
    assert (plan.units, plan.pictures, plan.left_out) == (3, 5, {".heic": 1})
    assert set(_good(out)) == {"b", "d"}  # until all of it is there
    _run(out, plan)
    assert _good(out) == {"a": b"3", "b": b"1", "d": b"2", "d=2Ebmp": b"4", "e": b"5"}
    assert before.items() <= _parts(out).items()
    summary = read_summary(out)
    assert summary is not None
    assert (summary.pictures, summary.members, summary.left_out) == (5, 2, {".heic": 1})
    assert grow.extend(out, plan, CONFIG, said.append) == plan
    assert said[1:] == [f"nothing is new at {images}"]
    assert _begin(images, out) == plan


def test_pictures_that_have_changed_are_named_and_left(tmp_path: Path) -> None:
    images, out, said = tmp_path / "in", str(tmp_path / "out"), list[str]()
    _write(images, a_png=b"1", b_png=b"2", c_png=b"3")
    plan = _begin(images, out)
    _run(out, plan)
    _write(images, a_png=b"changed", b_txt=b"a caption that is new")
    assert grow.extend(out, plan, CONFIG, said.append) == plan
    assert said[1:] == [
        f"changed since they were planned, and left as they are: 2, such as {images}/a.png, {images}/b.png"
    ]


def test_what_failed_is_tried_again_by_its_reason_and_its_history_stays(tmp_path: Path) -> None:
    images, out, said = tmp_path / "in", str(tmp_path / "out"), list[str]()
    _write(images, a_png=b"bad 7", b_png=b"bad apple", c_png=b"good")
    plan = _begin(images, out)
    _run(out, plan)
    assert _failed(out) == {"a": "bad 7", "b": "bad apple"}
    _write(images, a_png=b"mended")
    plan = grow.retry(out, plan, CONFIG, "bad N", said.append)
    assert grow.retry(out, plan, CONFIG, "", said.append) == plan
    _run(out, plan)
    assert (_good(out), _failed(out)) == ({"a": b"mended", "c": b"good"}, {"b": "bad apple"})
    rows = [row for name in sorted(Path(out).glob("*.parquet")) for row in pq.read_table(name).to_pylist()]
    assert [(row["key"], row["error"]) for row in rows if row["key"] == "a"] == [("a", "bad 7"), ("a", "")]
    assert grow.retry(out, plan, CONFIG, "bad N", said.append) == plan
    assert said == [
        "tried again: 1 that failed because of 'bad N'",
        "first what is missing; run it once more then, to try again what has failed",
        "nothing has failed because of 'bad N'",
    ]


def test_of_a_table_only_the_rows_that_failed_are_tried_again(tmp_path: Path) -> None:
    images, out = tmp_path / "in.parquet", str(tmp_path / "out")
    config = CompressConfig(unit=2, column="image")
    images.write_bytes(table_of({"image": [b"0", b"bad 1", b"2", b"3"], "label": [0, 1, 2, 3]}, group=4))
    plan = _begin(images, out, config)
    _run(out, plan)
    images.write_bytes(table_of({"image": [b"new 0", b"1", b"2", b"3"], "label": [9, 8, 7, 6]}, group=4))
    plan = grow.retry(out, plan, config, "", print)
    assert (plan.pictures, plan.again) == (4, 1)
    _run(out, plan)
    assert list(_good(out).values()) == [b"0", b"2", b"3", b"1"]
    assert not _failed(out)


def test_of_two_jobs_that_add_something_at_once_one_is_first_and_the_other_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out, said = tmp_path / "in", str(tmp_path / "out"), list[str]()
    _write(images, a_png=b"1")
    plan = _begin(images, out)
    _write(images, b_png=b"2")
    original, first = compressed.grow, list[Plan]()

    def slow(uri: str, before: Plan, stage: compressed.Stage) -> bool:
        if not first:
            first.append(plan)
            first.append(grow.extend(uri, before, CONFIG, said.append))
            _write(images, c_png=b"3")
        return original(uri, before, stage)

    monkeypatch.setattr(compressed, "grow", slow)
    last = grow.extend(out, plan, CONFIG, said.append)
    assert [stage.pictures for stage in last.stages] == [1, 1, 1]
    assert last.stages[:2] == first[1].stages
    assert {f"_plan/{name}" for name in storage.list_names(f"{out}/_plan")} == {s.directory for s in last.stages}
    _run(out, last)
    assert _good(out) == {"a": b"1", "b": b"2", "c": b"3"}


def test_pictures_inside_packages_do_not_grow(tmp_path: Path) -> None:
    said = list[str]()
    plan = claim("sample:held-out", str(tmp_path), "f" * 64, CONFIG)
    assert grow.extend(str(tmp_path), plan, CONFIG, said.append) == plan
    assert said == ["nothing is new at sample:held-out, which does not grow"]


def test_a_stage_that_is_missing_or_damaged_is_said(tmp_path: Path) -> None:
    images, out = tmp_path / "in", str(tmp_path / "out")
    _write(images, a_png=b"1")
    plan = _begin(images, out)
    for name in ("b_png", "c_png"):
        _write(images, **{name: b"x"})
        plan = grow.extend(out, plan, CONFIG, print)
    assert read_plan(out) == plan
    stage = Path(out) / "_grown" / "00001.json"
    data = stage.read_bytes()
    stage.unlink()
    with pytest.raises(UsageError, match=r"_grown has 00002\.json, but not all before it; copy it again"):
        read_plan(out)
    stage.write_bytes(data.replace(b'"units": 1', b'"units": 2'))
    with pytest.raises(UsageError, match="is damaged"):
        read_plan(out)
