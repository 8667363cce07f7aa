from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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
