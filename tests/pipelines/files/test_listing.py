from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.files import listing, storage


def _tree(root: str) -> list[str]:
    """Files whose order by path differs from that by directory."""
    names = ["a.png", "a/b.png", "a-b.png", "a/b/c.png", "b.png", "B.png", "ä.png", "a b.png", "deep/er/and/deeper.png"]
    for name in names:
        storage.write_bytes(storage.join(root, name), b"x")
    return names


def test_walking_names_every_file_in_the_order_of_its_bytes(place: str) -> None:
    names = _tree(place)
    assert [found.name for found in listing.walk(place)] == sorted(names, key=str.encode)
    assert [found.name for found in listing.walk(f"{place}/a")] == ["b.png", "b/c.png"]


def test_walking_goes_on_as_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tree(str(tmp_path))
    opened: list[str] = []
    original = os.scandir

    def spying(path: str) -> object:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(os, "scandir", spying)
    walk = listing.walk(str(tmp_path))
    assert next(walk).name == "B.png"
    assert opened == [str(tmp_path)]
    assert len(list(walk)) == 8


def test_walking_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.png").write_bytes(b"x")
    (tmp_path / "there" / "up").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "there")
    assert [found.name for found in listing.walk(str(tmp_path))] == ["link/a.png", "there/a.png"]


def test_walking_what_is_not_there_says_so(place: str) -> None:
    with pytest.raises(FileNotFoundError):
        list(listing.walk(place))


def test_walking_an_empty_directory_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty" / "er").mkdir(parents=True)
    assert list(listing.walk(str(tmp_path))) == []
