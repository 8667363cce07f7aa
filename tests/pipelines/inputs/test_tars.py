from __future__ import annotations

import gzip
import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.files.tar import read_members
from pipelines.inputs import units
from tests.support.inputs import plan, read, tar_of

Write = Callable[[str, bytes], None]


def test_of_a_tar_only_pictures_are_taken_and_their_source_names_both(tmp_path: Path, write: Write) -> None:
    write("s.tar", tar_of({"1.png": b"1", "1.json": b"{}", "1.cls": b"7", "sub/2.JPG": b"2", "readme": b"hi"}))
    found = read(plan(tmp_path / "s.tar"))
    assert [(f.source, f.data) for f in found] == [
        (f"{tmp_path}/s.tar/1.png", b"1"), (f"{tmp_path}/s.tar/sub/2.JPG", b"2"),
    ]  # fmt: skip


def test_members_of_one_stem_have_different_keys(tmp_path: Path, write: Write) -> None:
    write("s.tar", tar_of({"a.png": b"1", "a.jpg": b"2", "b.c.png": b"3", "b.d.png": b"4"}))
    keys = [f.key for f in read(plan(tmp_path))]
    assert len(set(keys)) == 4
    assert not any("." in key.rpartition("/")[2] for key in keys)


def test_a_member_that_is_twice_in_a_tar_comes_twice(tmp_path: Path, write: Write) -> None:
    write("s.tar", tar_of([("a.png", b"1"), ("a.png", b"22")]))
    found = read(plan(tmp_path))
    assert [f.data for f in found] == [b"1", b"22"]
    assert found[0].key != found[1].key


def test_a_shard_that_breaks_off_ends_with_that(tmp_path: Path, write: Write) -> None:
    data = tar_of({"a.png": bytes(600), "b.png": bytes(600)})
    write("s.tar", data[: 512 + 1024 + 512 + 100])
    first, last = read(plan(tmp_path))
    assert first.data == bytes(600)
    assert last.data is None
    assert last.source == f"{tmp_path}/s.tar/b.png"
    assert last.error.startswith("the shard is broken")


@pytest.mark.parametrize("data", [b"", b"no tar " * 200, bytes(range(1, 200)) * 10])
def test_what_is_no_tar_is_one_failure(tmp_path: Path, write: Write, data: bytes) -> None:
    write("s.tar", data)
    (found,) = read(plan(tmp_path))
    assert found.data is None
    assert found.source == f"{tmp_path}/s.tar"
    assert found.error.startswith("the shard is broken")


def test_a_shard_that_is_gone_is_one_failure(tmp_path: Path, write: Write) -> None:
    write("s.tar", tar_of({"a.png": b"1"}))
    planned = plan(tmp_path)
    (tmp_path / "s.tar").unlink()
    assert [(f.data, f.error) for f in read(planned)] == [(None, "there is no such file")]


def test_a_tar_whose_header_is_damaged_or_cut_off_says_so(tmp_path: Path, write: Write) -> None:
    whole = tar_of({"a.png": b"1", "b.png": b"2", "c.png": b"3"})
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
    write("s.tar", tar_of([(name, b"x") for name in [*names, "a.jpg"]]))
    found = read(plan(tmp_path))
    assert len({f.key for f in found}) == len(found) == 7
    assert all(f.key.encode() and f.source.encode() for f in found)


def test_a_tar_and_the_directory_that_it_was_unpacked_to_share_no_key(tmp_path: Path, write: Write) -> None:
    write("a.tar", tar_of({"x.png": b"1"}))
    write("a/x.png", b"1")
    assert sorted(f.key for f in read(plan(tmp_path))) == ["a.tar/x", "a/x"]


def test_tars_that_braces_name_are_units_of_their_own(tmp_path: Path, write: Write) -> None:
    for i in range(4):
        write(f"shards-{i:04d}.tar", tar_of({"a.png": bytes([i])}))
    planned = plan(tmp_path / "shards-{0001..0002}.tar")
    assert [(u.kind, u.keys) for u in planned] == [("shard", ["shards-0001.tar"]), ("shard", ["shards-0002.tar"])]
    assert [(f.key, f.data) for f in read(planned)] == [("shards-0001.tar/a", b"\1"), ("shards-0002.tar/a", b"\2")]


def _raw(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A header that claims whatever size, with its checksum right."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


_KINDS = [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_SPARSE, b"Z"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("size", [-512, -1, -(1 << 40), 1 << 33, 1 << 50, (1 << 63) - 1, 1 << 70])
def test_a_size_that_cannot_be_is_the_end_of_a_tar_and_nothing_is_allocated_for_it(
    tmp_path: Path, write: Write, size: int, kind: bytes
) -> None:
    write("s.tar", _raw("a.png", 1) + b"x" + bytes(511) + _raw("b.png", size, kind) + bytes(2048))
    (unit,) = plan(tmp_path)
    left_out: Counter[str] = Counter()
    first, *others = units.read_pictures(unit, left_out=left_out)
    assert first.data == b"x"
    assert len(others) <= 1 <= len(others) + left_out.total()
    assert all(found.data is None and found.error.startswith("the shard is broken") for found in others)


def test_a_hard_link_is_the_picture_that_it_links_to(tmp_path: Path, write: Write) -> None:
    linked = [_raw("b.png", 0, tarfile.LNKTYPE, "a.bin"), _raw("c.png", 0, tarfile.LNKTYPE, "none.png"),
              _raw("d.png", 0, tarfile.SYMTYPE, "a.bin")]  # fmt: skip
    write("s.tar", _raw("a.bin", 3) + b"abc" + bytes(509) + b"".join(linked) + bytes(1024))
    (unit,) = plan(tmp_path)
    left_out: Counter[str] = Counter()
    assert [(f.key, f.data) for f in units.read_pictures(unit, left_out=left_out)] == [("s.tar/b", b"abc")]
    assert left_out == {".bin": 1, "a hard link to what is not in the tar": 1, "a symbolic link in a tar": 1}


@pytest.mark.parametrize("zeros", [0, 512, 10240])
def test_tars_that_were_joined_are_read_to_their_end(tmp_path: Path, write: Write, zeros: int) -> None:
    write("s.tar", tar_of({"a.png": b"1"}) + bytes(zeros) + tar_of({"b.png": b"2", "c.txt": b"t"}) + bytes(zeros))
    assert [(f.key, f.data) for f in read(plan(tmp_path))] == [("s.tar/a", b"1"), ("s.tar/b", b"2")]
    write("s.tar", tar_of({"a.png": b"1"}) + b"something else" * 100)
    first, last = read(plan(tmp_path))
    assert (first.data, last.data) == (b"1", None)


@pytest.mark.parametrize("name", ["s.tgz", "s.tar.gz", "S.TGZ"])
def test_gzipped_tars_are_read_and_say_where_they_break_off(tmp_path: Path, write: Write, name: str) -> None:
    members = {f"{i:02d}.png": bytes([i]) * 30_000 for i in range(40)}
    whole = gzip.compress(tar_of(members) + tar_of({"last.png": b"x", "a.json": b"{}"}))
    write(name, whole)
    found = read(plan(tmp_path))
    assert [f.data for f in found] == [*members.values(), b"x"]
    for damaged in (whole[: len(whole) // 2], whole[:-4], whole[:900] + b"\0\0\0\0" + whole[904:], b"no gzip", b""):
        write(name, damaged)
        found = read(plan(tmp_path))
        assert found[-1].error.startswith("the shard is broken")
        assert all(f.data is not None for f in found[:-1])


def test_of_a_tar_everything_is_a_picture_or_left_out(tmp_path: Path, write: Write) -> None:
    names = ["a.png", "._a.png", "__MACOSX/a.png", "a.json", "b", "sub/c.jfif", "d\0.png"]
    write("s.tar", tar_of(dict.fromkeys(names, b"x")))
    (unit,) = plan(tmp_path)
    left_out: Counter[str] = Counter()
    assert len(list(units.read_pictures(unit, left_out=left_out))) + left_out.total() == len(names)
    assert left_out == {"macOS's own (._NAME, __MACOSX)": 2, ".json": 1, "without an extension": 2}


def test_a_name_with_a_nul_in_it_has_a_key_of_its_own_that_a_part_can_hold(tmp_path: Path, write: Write) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a\0b.png", "a.png"):
            info = tarfile.TarInfo("plain.png")
            info.size, info.pax_headers = 1, {"path": name}
            tar.addfile(info, io.BytesIO(b"x"))
    write("s.tar", buffer.getvalue())
    keys = [found.key for found in read(plan(tmp_path))]
    assert keys == ["s.tar/a=00b=2Epng", "s.tar/a"]
    part = tar_of({f"{key}.crdf": key.encode() for key in keys})
    assert dict(read_members(part, ".crdf")) == {key: key.encode() for key in keys}
