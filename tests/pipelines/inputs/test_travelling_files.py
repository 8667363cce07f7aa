"""What travels with the pictures of tars and folders."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrdiff.errors import UsageError
from pipelines.files import storage
from pipelines.inputs import samples, sidecars, tars, units
from pipelines.inputs.samples import ALL, NONE, Found, Travels
from pipelines.inputs.sidecars import Name, Picture, with_sidecars
from pipelines.inputs.units import PlannedUnits
from tests.support.inputs import tar_of

Write = Callable[[str, bytes], None]
EVERYTHING = Travels((ALL,))


def _read(images: object, travels: Travels = EVERYTHING) -> tuple[list[Found], Counter[str]]:
    left_out: Counter[str] = Counter()
    planned = list(units.plan_units(str(images), None, 4, left_out, travels))
    return [found for unit in planned for found in units.read_pictures(unit, left_out=left_out)], left_out


def _contents(found: list[Found]) -> list[tuple[str, bytes | None, dict[str, bytes]]]:
    return [(f.key.rpartition("/")[2], f.data, dict(f.fields.members)) for f in found]


def test_the_other_members_of_a_sample_travel_with_its_picture(tmp_path: Path, write: Write) -> None:
    members = [("1.txt", b"one"), ("1.jpg", b"J"), ("1.json", b"{}"), ("sub/2.png", b"P"), ("sub/2.left.npy", b"N")]
    write("s.tar", tar_of(members))
    found, left_out = _read(tmp_path)
    assert _contents(found) == [("1", b"J", {"txt": b"one", "json": b"{}"}), ("2", b"P", {"left.npy": b"N"})]
    assert [f.source for f in found] == [f"{tmp_path}/s.tar/1.jpg", f"{tmp_path}/s.tar/sub/2.png"]
    assert not left_out


def test_of_several_pictures_the_one_that_is_named_is_compressed_and_the_others_travel(
    tmp_path: Path, write: Write
) -> None:
    write("s.tar", tar_of({"a.jpg": b"J", "a.seg.png": b"S", "a.txt": b"t", "b.seg.png": b"T", "b.txt": b"u"}))
    found, _ = _read(tmp_path, Travels((ALL,), "jpg"))
    assert _contents(found) == [
        ("a", b"J", {"seg.png": b"S", "txt": b"t"}), ("b", None, {"seg.png": b"T", "txt": b"u"}),
    ]  # fmt: skip
    assert found[1].error == "the sample has no .jpg"
    found, _ = _read(tmp_path, Travels((ALL,), "seg.png"))
    assert _contents(found) == [("a", b"S", {"jpg": b"J", "txt": b"t"}), ("b", b"T", {"txt": b"u"})]
    found, left_out = _read(tmp_path, Travels((NONE,), "jpg"))
    assert _contents(found) == [("a", b"J", {})]
    assert left_out == {".png": 2, ".txt": 2}


def test_where_none_is_named_each_picture_is_compressed_and_what_has_its_name_travels_with_it(
    tmp_path: Path, write: Write
) -> None:
    write("s.tar", tar_of({"a.jpg": b"J", "a.seg.png": b"S", "a.txt": b"t", "a.seg.json": b"s"}))
    found, _ = _read(tmp_path)
    assert [(f.data, dict(f.fields.members)) for f in found] == [(b"J", {"txt": b"t"}), (b"S", {"seg.json": b"s"})]


def test_tars_of_pictures_with_dots_in_their_names_are_samples_of_one_picture(tmp_path: Path, write: Write) -> None:
    members = [(f"2024.01.{i}.{kind}", f"{i}{kind}".encode()) for i in range(3) for kind in ("cls", "jpg", "txt")]
    write("s.tar", tar_of(members))
    found, _ = _read(tmp_path)
    assert [(f.data, dict(f.fields.members)) for f in found] == [
        (f"{i}jpg".encode(), {"cls": f"{i}cls".encode(), "txt": f"{i}txt".encode()}) for i in range(3)
    ]
    assert len({f.key for f in found}) == 3


def test_a_sample_without_a_picture_is_a_row_with_its_reason_and_its_fields(tmp_path: Path, write: Write) -> None:
    write("s.tar", tar_of({"a.png": b"P", "b.txt": b"caption", "b.cls": b"7", "readme": b"x", "c.crdf": b"ours"}))
    found, left_out = _read(tmp_path)
    assert _contents(found) == [("a", b"P", {}), ("b", None, {"txt": b"caption", "cls": b"7"})]
    assert found[1].error == "the sample has no picture"
    assert left_out == {"without an extension": 1, ".crdf": 1}


def test_a_member_whose_ending_a_sample_has_begins_the_next_one(tmp_path: Path, write: Write) -> None:
    write("s.tar", tar_of([("a.png", b"1"), ("a.txt", b"1"), ("a.png", b"2"), ("a.TXT", b"2"), ("a.txt", b"3")]))
    found, _ = _read(tmp_path)
    assert _contents(found) == [("a", b"1", {"txt": b"1"}), ("a-2", b"2", {"TXT": b"2"}), ("a-3", None, {"txt": b"3"})]


def test_a_tar_that_breaks_off_in_a_caption_keeps_the_picture_and_says_so(tmp_path: Path, write: Write) -> None:
    write("s.tar", tar_of({"a.png": bytes(512), "a.txt": bytes(512)})[: 512 + 512 + 512 + 100])
    found, _ = _read(tmp_path)
    assert [(f.data, f.error[:19]) for f in found] == [(bytes(512), ""), (None, "the shard is broken")]
    assert found[1].source == f"{tmp_path}/s.tar/a.txt"
    assert len({f.key for f in found}) == 2


def test_what_is_too_large_is_left_out_and_said(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "MAX_FIELD_BYTES", 100)
    monkeypatch.setattr(samples, "MAX_UNIT_BYTES", 150)
    write(
        "in/s.tar",
        tar_of({"a.png": bytes(1000), "a.npy": bytes(101), "a.txt": bytes(100), "b.png": b"", "b.x": bytes(60)}),
    )
    for name, size in {"p.png": 1000, "p.mov": 101, "p.txt": 100, "q.png": 0, "q.x": 60}.items():
        write(f"in/{name}", bytes(size))
    found, left_out = _read(tmp_path / "in")
    assert [[ending for ending, _ in f.fields.members] for f in found] == [["txt"], [], ["txt"], []]
    assert found[0].fields.left_out == (".mov left out: more than 0 MiB beside a picture",)
    assert found[2].fields.left_out == (".npy left out: more than 0 MiB beside a picture",)
    assert left_out == {
        "more than 0 MiB beside a picture": 2,
        "beyond the 0 MiB that may travel with the pictures of a unit": 2,
    }


def test_files_that_share_a_name_with_a_picture_travel_with_it(tmp_path: Path, write: Write) -> None:
    for name in (
        "a.cls",
        "a.jpg",
        "a.txt",
        "b/a.png",
        "b/a.seg.npy",
        "b/c.txt",
        "d.png",
        "d.tar",
        "e.idx",
        "e.tar",
        "._a.txt",
    ):
        write(f"in/{name}", tar_of({}) if name.endswith(".tar") else name.encode())
    found, left_out = _read(tmp_path / "in")
    assert _contents(found) == [
        ("a", b"a.jpg", {"cls": b"a.cls", "txt": b"a.txt"}), ("a", b"b/a.png", {"seg.npy": b"b/a.seg.npy"}),
        ("d", b"d.png", {}),
    ]  # fmt: skip
    assert left_out == {".txt": 1, ".idx": 1, "macOS's own (._NAME, __MACOSX)": 1}


def test_of_a_folder_too_the_picture_that_is_named_is_compressed(tmp_path: Path, write: Write) -> None:
    for name in ("a.jpg", "a.seg.png", "a.png", "b.png"):
        write(f"in/{name}", name.encode())
    found, left_out = _read(tmp_path / "in", Travels((ALL,), "jpg"))
    assert _contents(found) == [("a", b"a.jpg", {"png": b"a.png", "seg.png": b"a.seg.png"})]
    assert left_out == {".png": 1}
    found, left_out = _read(tmp_path / "in", Travels((ALL,), "seg.png"))
    assert _contents(found) == [("a=2Eseg=2Epng", b"a.seg.png", {"jpg": b"a.jpg", "png": b"a.png"})]


def test_what_is_beside_the_pictures_of_a_glob_travels_and_what_it_names_itself_is_taken(
    tmp_path: Path, write: Write
) -> None:
    for name in ("a.jpg", "a.txt", "b.jpg", "c.txt"):
        write(f"in/{name}", name.encode())
    found, left_out = _read(tmp_path / "in/*.jpg")
    assert _contents(found) == [("a", b"a.jpg", {"txt": b"a.txt"}), ("b", b"b.jpg", {})]
    assert not left_out
    found, _ = _read(tmp_path / "in/*")
    assert _contents(found) == [("a", b"a.jpg", {"txt": b"a.txt"}), ("b", b"b.jpg", {}), ("c", b"c.txt", {})]
    found, _ = _read(f"{tmp_path}/in/{{a,b}}.jpg")
    assert [f.data for f in found] == [b"a.jpg", b"b.jpg"]


def test_only_what_is_named_travels(tmp_path: Path, write: Write) -> None:
    write("in/s.tar", tar_of({"a.png": b"P", "a.TXT": b"t", "a.json": b"{}", "b.json": b"{}"}))
    for name in ("p.png", "p.txt", "p.json"):
        write(f"in/{name}", name.encode())
    found, left_out = _read(tmp_path / "in", Travels((".txt",)))
    assert _contents(found) == [("p", b"p.png", {"txt": b"p.txt"}), ("a", b"P", {"TXT": b"t"})]
    assert left_out == {".json": 3}


def test_a_file_beside_a_picture_that_is_gone_or_may_not_be_read_is_said(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "a.json", "a.txt", "a.x"):
        write(f"in/{name}", name.encode())
    (unit,) = units.plan_units(str(tmp_path / "in"), None, 4, None, EVERYTHING)
    (tmp_path / "in" / "a.txt").unlink()
    original = storage.open_ranges

    def refused(uri: str) -> object:
        if uri.endswith(".json"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(uri)

    monkeypatch.setattr(storage, "open_ranges", refused)
    left_out: Counter[str] = Counter()
    (found,) = units.read_pictures(unit, left_out=left_out)
    assert (found.data, dict(found.fields.members)) == (b"a.jpg", {"x": b"a.x"})
    assert left_out == {"a file beside a picture that is gone": 1, "a file beside a picture: Permission denied": 1}
    assert len(found.fields.left_out) == 2


def test_a_plan_says_what_travels(tmp_path: Path, write: Write) -> None:
    write("in/a.png", b"1")
    write("in/a.txt", b"t")
    write("in/s.tar", tar_of({"x.png": b"1"}))
    planned = list(units.plan_units(str(tmp_path / "in"), None, 4, None, Travels((ALL,), "png")))
    assert planned[0].sidecars == [["txt"]]
    assert planned[1].travels == Travels((ALL,), "png")
    units.write_plan("memory://travelling", iter(planned))
    assert units.read_units(PlannedUnits("memory://travelling"), 0) == planned
    with pytest.raises(UsageError, match=r"--picture must be the ending of a picture, as jpg or left\.png, not 'txt'"):
        list(units.plan_units(str(tmp_path / "in"), None, 4, None, Travels((ALL,), "txt")))


_FOLDERS, _STEMS, _ENDINGS = ["", "d/", "a.d/"], ["a", "b", "a.b", "a.b.c"], [".jpg", ".png", ".txt", ".cls"]
_NAMES = st.builds("{}{}{}".format, *map(st.sampled_from, (_FOLDERS, _STEMS, _ENDINGS)))


@given(names=st.sets(_NAMES, max_size=20), at_once=st.sampled_from([1, 2, 4, 100]))
def test_whatever_the_names_each_is_a_picture_travels_once_or_is_left_out(names: set[str], at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sidecars, "RUN_NAMES", at_once)
        reasons = [Name(n, None if n.endswith((".jpg", ".png")) else ".other") for n in sorted(names)]
        left_out: Counter[str] = Counter()
        found = list(with_sidecars(reasons, (".jpg", ".png"), EVERYTHING, left_out))
    assert [p.name for p in found] == [n.name for n in reasons if n.reason is None]
    travelled = [f"{p.name.rpartition('.')[0]}.{ending}" for p in found for ending in p.sidecars]
    assert len(set(travelled)) == len(travelled)
    assert {*travelled} <= {n.name for n in reasons if n.reason}
    assert len(found) + len(travelled) + left_out.total() == len(names)
    stems = {p.name.rpartition(".")[0] for p in found}
    if at_once == 100:
        assert {n.name for n in reasons if n.reason and n.name.rpartition(".")[0] in stems} <= {*travelled}


def test_a_run_of_names_that_begin_alike_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecars, "RUN_NAMES", 10)
    taken = 0

    def names() -> object:
        nonlocal taken
        for i in range(1000):
            for kind in ("jpg", "txt"):
                taken += 1
                yield Name(f"frame.{i:04d}.{kind}", None if kind == "jpg" else ".txt")

    for i, picture in enumerate(with_sidecars(names(), (".jpg",), EVERYTHING, Counter())):  # type: ignore[arg-type]
        assert picture == Picture(f"frame.{i:04d}.jpg", ("txt",))
        assert taken <= 2 * i + 13
    assert taken == 2000


@pytest.mark.timeout(20)
def test_many_names_that_begin_alike_take_time_in_proportion() -> None:
    names = (
        Name(f"frame.{i:06d}.{kind}", None if kind == "jpg" else "") for i in range(60_000) for kind in ("jpg", "x")
    )
    assert all(p.sidecars == ("x",) for p in with_sidecars(names, (".jpg",), EVERYTHING, Counter()))


def test_members_without_a_picture_that_begin_alike_are_rows_of_some_of_them(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars, "MOST_MEMBERS", 4)
    write("s.tar", tar_of({f"frame.{i}.txt": b"%d" % i for i in range(10)}))
    found, left_out = _read(tmp_path)
    assert [len(f.fields.members) for f in found] == [4, 4, 2]
    assert [data for f in found for _, data in f.fields.members] == [b"%d" % i for i in range(10)]
    assert len({f.key for f in found}) == 3
    assert not left_out
