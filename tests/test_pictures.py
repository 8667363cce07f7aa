from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from corrdiff.errors import UsageError
from corrdiff.images import open_image
from pipelines import pictures
from pipelines.report import Panel, side_by_side


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
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "a.jpg", "sub/a.png", "b.c.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = pictures.list_pictures(str(tmp_path))
    assert [(s.key, Path(s.uri).relative_to(tmp_path).as_posix()) for s in found] == [
        ("a_jpg", "a.jpg"), ("a_png", "a.png"), ("b_c", "b.c.png"), ("sub/a", "sub/a.png"),
    ]  # fmt: skip


def test_a_glob_and_a_single_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert [s.key for s in pictures.list_pictures(f"{tmp_path}/*.png")] == ["a", "b"]
    assert [s.key for s in pictures.list_pictures(f"{tmp_path}/c.jpg")] == ["c"]


def test_nothing_to_list_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures at"):
        pictures.list_pictures(str(tmp_path))


def test_side_by_side_shows_every_picture() -> None:
    red, blue = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 40, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    data = side_by_side([[Panel("a", red), Panel("b", blue)], [Panel("c", red)]])
    sheet = np.asarray(Image.open(io.BytesIO(data)))
    assert (sheet == (255, 0, 0)).all(-1).sum() == 2 * 600
    assert (sheet == (0, 0, 255)).all(-1).sum() == 800
