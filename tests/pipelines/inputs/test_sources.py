from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrdiff.errors import UsageError
from corrdiff.images import EXTENSIONS, open_image
from pipelines.files import storage
from pipelines.inputs import sources as pictures
from pipelines.inputs.sources import Keys


def test_samples_are_colour_photographs_inside_installed_packages() -> None:
    sources = pictures.list_pictures("sample:")
    assert len(sources) == 10
    for source in sources:
        pixels = open_image(pictures.read(source)).pixels
        assert min(pixels.shape[:2]) >= 300
        assert np.abs(pixels[..., 0].astype(int) - pixels[..., 2]).mean() > 2


def test_the_held_out_samples_are_not_among_those_to_train_on() -> None:
    train, held_out = ({s.key for s in pictures.list_pictures(f"sample:{part}")} for part in ("train", "held-out"))
    assert held_out == {"chelsea", "coffee"}
    assert not train & held_out
    assert train | held_out == {s.key for s in pictures.list_pictures("sample:")}


def test_a_directory_is_searched_and_keys_are_unique_and_without_dots(tmp_path: Path) -> None:
    (tmp_path / "sub.1").mkdir()
    for name in ("a.png", "a.jpg", "sub.1/a.png", "b.c.png", "b_c.png", "d.PNG", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = pictures.list_pictures(str(tmp_path))
    keys = {Path(s.uri).relative_to(tmp_path).as_posix(): s.key for s in found}
    assert list(keys) == ["a.jpg", "a.png", "b.c.png", "b_c.png", "d.PNG", "sub.1/a.png"]
    assert len(set(keys.values())) == len(keys)
    assert not any("." in key.rpartition("/")[2] for key in keys.values())
    assert [keys[name] for name in ("a.jpg", "b_c.png", "d.PNG", "sub.1/a.png")] == ["a", "b_c", "d", "sub.1/a"]
    assert (keys["a.png"], keys["b.c.png"]) == ("a=2Epng", "b=2Ec=2Epng")
    assert pictures.list_pictures(str(tmp_path)) == found


def test_a_glob_and_a_single_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [s.key for s in pictures.list_pictures(f"{tmp_path}/*.png")] == ["a", "b"]
    assert [s.key for s in pictures.list_pictures(f"{tmp_path}/c.jpg")] == ["c"]


def test_nothing_to_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures at"):
        pictures.list_pictures(str(tmp_path))


def _keys(names: list[str]) -> list[str]:
    keys = Keys()
    return [keys.of(name) for name in names]


def test_the_first_of_equal_stems_keeps_the_stem() -> None:
    assert _keys(["a.bmp", "a.jpg", "a.png"]) == ["a", "a=2Ejpg", "a=2Epng"]


def test_a_stem_is_taken_though_other_names_come_between() -> None:
    assert _keys(["a.jpg", "a.x.jpg", "a.x.png", "a.zzz"]) == ["a", "a=2Ex=2Ejpg", "a=2Ex=2Epng", "a=2Ezzz"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a", "a="), (".png", "=2Epng"), ("..png", "=2E=2Epng"), ("../a.png", "=2E=2E/a=2Epng"),
        ("a/../b.png", "a/=2E=2E/b=2Epng"), ("/a.png", "=2F/a=2Epng"), ("a//b.png", "a/=2F/b=2Epng"),
        ("./a.png", "=2E/a=2Epng"), ("a\0b.png", "a=00b=2Epng"), ("a=b.png", "a=3Db=2Epng"),
        ("\udce9.png", "=uDCE9=2Epng"), ("s.tar/x.png", "s=2Etar/x=2Epng"), ("std::map.png", "std::map"),
        ("x [1].png", "x [1]"),
    ],
)  # fmt: skip
def test_a_name_that_no_key_can_be_is_written_so_that_it_leads_nowhere_and_can_be_read_back(
    name: str, key: str
) -> None:
    assert _keys([name]) == [key]
    assert not {"", ".", ".."} & {*key.split("/")}
    assert key.encode()


def test_a_key_does_not_depend_on_names_of_other_stems() -> None:
    assert _keys(["0.png", "b.c.png", "b.jpg", "z.png"])[1:3] == _keys(["b.c.png", "b.jpg"])


def test_keys_remember_no_more_than_the_run_of_names_that_is_open() -> None:
    keys = Keys()
    for i in range(1000):
        keys.of(f"{i:04d}.jpg")
        keys.of(f"{i:04d}.png")
    assert len(keys._open) == 1


_PART = st.text(st.sampled_from("ab.-_/ä=2E3DFu\0\udce9"), min_size=1, max_size=6)
_NAME = st.one_of(
    _PART, st.builds("{}.{}".format, _PART, st.sampled_from(["png", "jpg", "c.png"])), st.text(max_size=8)
)


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogatepass")


def _with_likes(names: set[str]) -> set[str]:
    """Names, and others that are made to have the keys of these: what one key would be, with each extension."""
    keys = _keys(sorted(names, key=_bytes))
    return {*names, *(f"{key}{extension}" for key in keys for extension in ("", ".png", ".jpg", "=.png"))}


@settings(max_examples=300)
@given(names=st.sets(_NAME, max_size=12).map(_with_likes).map(_with_likes))
def test_keys_of_any_names_in_order_are_unique_proper_and_without_dots(names: set[str]) -> None:
    ordered = sorted(names, key=_bytes)
    keys = _keys(ordered)
    assert len(set(keys)) == len(keys)
    assert not any("." in key.rpartition("/")[2] for key in keys)
    assert not any({"", ".", ".."} & {*key.split("/")} for key in keys)
    assert _keys(ordered) == keys


def test_pictures_are_found_on_any_storage_in_the_order_of_their_uris(tmp_path: Path) -> None:
    names = ["a.png", "a/b.JPG", "a-b.webp", "a/c/d.tiff", "B.gif"]
    for root in (str(tmp_path), "memory://pictures-anywhere/in"):
        for name in [*names, "notes.txt", "a/table.parquet"]:
            storage.write_bytes(storage.join(root, name), b"x")
        found = list(pictures.iterate(root))
        assert [s.uri for s in found] == [storage.join(root, name) for name in sorted(names, key=str.encode)]
        assert [s.key for s in found] == ["B", "a-b", "a", "a/b", "a/c/d"]
        assert pictures.read(found[0]) == b"x"


def test_pictures_come_as_they_are_found(tmp_path: Path) -> None:
    for name in ("a.png", "b/c.png"):
        storage.write_bytes(str(tmp_path / name), b"x")
    found = pictures.iterate(str(tmp_path))
    assert next(found).key == "a"
    storage.write_bytes(str(tmp_path / "b" / "new.png"), b"x")
    assert [s.key for s in found] == ["b/c", "b/new"]


def test_other_extensions_are_looked_for_when_asked(tmp_path: Path) -> None:
    for name in ("a.png", "b.parquet", "c.PARQUET"):
        (tmp_path / name).write_bytes(b"x")
    assert [s.key for s in pictures.iterate(str(tmp_path), (".parquet",))] == ["b", "c"]


@pytest.mark.parametrize("scheme", ["local", "memory"])
def test_a_glob_reaches_as_far_as_it_says(tmp_path: Path, scheme: str) -> None:
    root = str(tmp_path) if scheme == "local" else f"memory://pictures-glob{tmp_path}"
    for name in ("1/a.png", "1/b.jpg", "1/x/c.png", "2/d.png", "e.png"):
        storage.write_bytes(storage.join(root, name), b"x")

    def found(pattern: str) -> list[str]:
        return [s.uri.removeprefix(f"{root}/") for s in pictures.iterate(f"{root}/{pattern}")]

    assert found("*.png") == ["e.png"]
    assert found("*/*.png") == ["1/a.png", "2/d.png"]
    assert found("1/?.*") == ["1/a.png", "1/b.jpg"]
    assert found("**/*.png") == ["1/a.png", "1/x/c.png", "2/d.png", "e.png"]
    assert found("[13]/a.png") == ["1/a.png"]
    assert found("*.bmp") == []


def test_a_single_file_is_taken_whatever_its_extension(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"x")
    (source,) = pictures.list_pictures(str(tmp_path / "photo"))
    assert (source.uri, source.key) == (str(tmp_path / "photo"), "photo=")


@pytest.mark.parametrize("where", ["/none/of/this", "memory://pictures-none"])
def test_a_place_that_is_not_there_is_an_error(where: str) -> None:
    with pytest.raises(UsageError, match=f"no pictures at {where}"):
        pictures.list_pictures(where)


def test_a_sample_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"there is no sample 'moon'; there are astronaut, .*'train' and 'held-out'"):
        pictures.list_pictures("sample:moon")


def _names(root: str, pattern: str, extensions: tuple[str, ...] = EXTENSIONS) -> list[str]:
    return [s.uri.removeprefix(f"{root}/") for s in pictures.iterate(f"{root}/{pattern}", extensions)]


def test_braces_name_all_that_they_expand_to_in_order_and_once(place: str) -> None:
    for i in range(12):
        storage.write_bytes(f"{place}/shard-{i:04d}.tar", b"x")
    found = [*pictures.iterate(f"{place}/shard-{{0002..0010}}.tar")]
    assert [s.uri for s in found] == [f"{place}/shard-{i:04d}.tar" for i in range(2, 11)]
    assert [s.key for s in found] == [f"shard-{i:04d}" for i in range(2, 11)]
    assert _names(place, "shard-000{3,1,3}.tar") == ["shard-0001.tar", "shard-0003.tar"]
    assert _names(place, "{shard-000,shard-001}{0..1}.tar") == [
        "shard-0000.tar", "shard-0001.tar", "shard-0010.tar", "shard-0011.tar",
    ]  # fmt: skip


def test_braces_may_name_directories_and_stand_beside_a_glob(place: str) -> None:
    for name in ("2023/a.png", "2023/b.txt", "2023-x.png", "2024/a.jpg", "2024/sub/c.png", "2025/d.png"):
        storage.write_bytes(f"{place}/{name}", b"x")
    assert _names(place, "{2023,2024}") == ["2023/a.png", "2024/a.jpg", "2024/sub/c.png"]
    assert _names(place, "{2023,2023-x.png,2024}") == ["2023-x.png", "2023/a.png", "2024/a.jpg", "2024/sub/c.png"]
    assert _names(place, "{2023,2024}/*.png") == ["2023/a.png"]
    assert _names(place, "202*/*.{png,jpg}") == ["2023/a.png", "2024/a.jpg", "2025/d.png"]
    assert _names(place, "*/{a,d}.*") == ["2023/a.png", "2024/a.jpg", "2025/d.png"]


def test_keys_are_unique_whatever_braces_name(tmp_path: Path) -> None:
    for name in ("a1.png", "a1.jpg", "a2.png", "a2.jpg", "b/a1.png"):
        storage.write_bytes(str(tmp_path / name), b"x")
    found = list(pictures.iterate(f"{tmp_path}/{{a*.jpg,a*.png,b,a1.*}}"))
    assert [s.uri.removeprefix(f"{tmp_path}/") for s in found] == ["a1.jpg", "a1.png", "a2.jpg", "a2.png", "b/a1.png"]
    assert len({s.key for s in found}) == 5


def test_something_that_is_called_so_is_found_though_its_name_has_braces(place: str) -> None:
    for name in ("{a,b}.png", "a.png", "b.png", "{1..2}/c.png", "1/c.png", "{x}.png", "{y.png"):
        storage.write_bytes(f"{place}/{name}", b"x")
    assert _names(place, "{a,b}.png") == ["{a,b}.png"]
    assert _names(place, "{1..2}") == ["{1..2}/c.png"]
    assert _names(place, "{1..2}/*.png") == ["{1..2}/c.png"]
    assert _names(place, "{a,b}*") == ["a.png", "b.png", "{a,b}.png"]
    assert _names(place, "{x}.png") == ["{x}.png"]
    assert _names(place, "{y.png") == ["{y.png"]
    assert _names(place, "{x}*.png") == ["{x}.png"]


def test_what_braces_name_and_is_not_there_is_said(place: str) -> None:
    for i in (0, 1, 3):
        storage.write_bytes(f"{place}/s-{i}.tar", b"x")
    with pytest.raises(UsageError, match=r"s-\{0\.\.4\}\.tar: of 5 names 2 are not there, such as .*/s-2\.tar"):
        _names(place, "s-{0..4}.tar")
    assert _names(place, "{s}-0.tar") == []
    assert _names(place, "s-{0..") == []


_ODD = [
    "a::b",
    "x?versionId=1",
    "v [1]",
    "[b]",
    "a*",
    "{x}",
    "ends ",
    "~",
    "%41",
    "#",
    "file:",
    "memory:",
    "a@b",
    "&;|",
    "\n",
]


@pytest.mark.parametrize("odd", _ODD)
def test_a_directory_and_a_file_of_any_name_are_what_they_are(tmp_path: Path, odd: str) -> None:
    """Among others that a pattern, a chain of file systems or a scheme could be taken to name."""
    place = tmp_path / odd / "deeper"
    place.mkdir(parents=True)
    for name in ("a.png", f"{odd}.png", f"a.png::{odd}.png"):
        (place / name).write_bytes(name.encode())
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "wrong.png").write_bytes(b"wrong")
    for argument in (place, f"{place}/*.png"):
        found = pictures.list_pictures(str(argument))
        assert {pictures.read(source).decode() for source in found} == {"a.png", f"{odd}.png", f"a.png::{odd}.png"}
    (one,) = pictures.list_pictures(str(place / f"{odd}.png"))
    assert pictures.read(one) == f"{odd}.png".encode()


def test_a_directory_is_taken_literally_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Photos [2024]" / "in").mkdir(parents=True)
    (tmp_path / "Photos [2024]" / "in" / "a.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path / "Photos [2024]")
    assert [s.key for s in pictures.list_pictures("in")] == ["a"]
    assert [s.key for s in pictures.list_pictures("in/*.png")] == ["a"]


def test_what_is_not_taken_is_counted_by_few_reasons(tmp_path: Path) -> None:
    names = [
        "a.png", "b.JFIF", "c.heic", "d.heic", "e", "._a.png", "__MACOSX/._a.png", "f.tar.gz", "notes.txt", ".hidden",
        "g.averylongending",
    ]  # fmt: skip
    for name in names:
        storage.write_bytes(str(tmp_path / name), b"x")
    left_out: Counter[str] = Counter()
    found = pictures.list_pictures(str(tmp_path), left_out)
    assert [s.key for s in found] == ["a", "b"]
    assert left_out == {
        ".heic": 2, "macOS's own (._NAME, __MACOSX)": 2, ".tar.gz": 1, ".txt": 1, "without an extension": 3,
    }  # fmt: skip
    assert len(found) + left_out.total() == len(names)


def test_a_name_that_is_not_utf_8_is_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    good, bad = pictures.list_pictures(str(tmp_path))
    assert (good.key, good.problem) == ("a", "")
    assert (bad.key, bad.problem) == ("caf=uDCE9=2Epng", "its name is not UTF-8; rename it")
    assert bad.uri == f"{tmp_path}/caf\\udce9.png"
    with pytest.raises(OSError, match="not UTF-8"):
        pictures.read(bad)
