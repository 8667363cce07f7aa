from __future__ import annotations

import io
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from corrdiff.images import save_png
from pipelines.compress import read
from pipelines.inputs.samples import Fields
from pipelines.inputs.units import Found
from tests.support.compression import flat, found_of, open_pictures


def test_every_picture_of_a_unit_comes_once_and_the_last_chunk_says_how_many() -> None:
    pictures = [*flat(4, 6, 5), *flat(6, 4, 3), *flat(4, 6, 2)]
    chunks = open_pictures(found_of(pictures))
    assert [c.unit for c in chunks] == [5] * len(chunks)
    assert [c.total for c in chunks] == [None] * (len(chunks) - 1) + [10]
    opened = sorted((p for c in chunks for p in c.pictures), key=lambda p: p.place)
    assert [p.place for p in opened] == list(range(10))
    assert [p.key for p in opened] == [f"k/{i}" for i in range(10)]
    assert all(np.array_equal(p.pixels, picture) for p, picture in zip(opened, pictures, strict=True))


def test_an_empty_unit_is_one_empty_chunk() -> None:
    (chunk,) = open_pictures([])
    assert (chunk.pictures, chunk.total) == ([], 0)


def test_pictures_of_one_size_follow_each_other() -> None:
    pictures = [p for pair in zip(flat(4, 6, 6), flat(6, 4, 6), strict=True) for p in pair]
    shapes = [p.pixels.shape for c in open_pictures(found_of(pictures)) for p in c.pictures]
    assert len([*itertools.groupby(shapes)]) == 2


def test_a_size_of_which_there_are_enough_goes_on_in_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "READY_PIXELS", 64)
    taken: list[int] = []

    def counting() -> Iterator[Found]:
        for i, found in enumerate(found_of(flat(4, 8, 9))):
            taken.append(i)
            yield found

    chunks = read.open_unit(0, counting(), 4, 1 << 28)
    assert [p.place for p in next(chunks).pictures] == [0, 1, 2, 3]
    assert len(taken) == 4
    assert [len(c.pictures) for c in chunks] == [4, 1, 0]


def test_what_waits_for_others_of_its_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "HELD_PIXELS", 100)
    taken: list[int] = []

    def counting() -> Iterator[Found]:
        for i, found in enumerate(found_of([np.zeros((1, 20 + i, 3), np.uint8) for i in range(30)])):
            taken.append(i)
            yield found

    came = 0
    for chunk in read.open_unit(0, counting(), 4, 1 << 28):
        assert sum(20 + i for i in taken[came:]) <= 100 + 50
        came += len(chunk.pictures)
    assert came == 30


def test_the_last_of_a_unit_are_cut_into_chunks_of_like_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "CHUNK_PIXELS", 100)
    chunks = open_pictures(found_of([*flat(5, 6, 7), *flat(20, 20, 1)]))
    assert [[p.size for p in c.pictures] for c in chunks] == [[30] * 3, [30] * 3, [30], [400], []]


def test_what_cannot_be_opened_is_a_failure_with_its_reason_and_place() -> None:
    good = save_png(np.zeros((4, 4, 3), np.uint8))
    found = [
        Found("a", "a.png", None, "there is no such file"), Found("b", "b.png", good), Found("c", "c.png", b""),
        Found("d", "d.png", b"no picture"), Found("e", "e.png", good[:-30]),
        Found("f", "f.png", save_png(np.zeros((5, 4, 3), np.uint8))),
    ]  # fmt: skip
    chunks = open_pictures(found, max_pixels=19)
    opened = sorted((p for c in chunks for p in c.pictures), key=lambda p: p.place)
    assert [p.key for p in opened] == list("abcdef")
    assert [p.pixels is None for p in opened] == [True, False, True, True, True, True]
    assert opened[0].error == "there is no such file"
    assert opened[2].error == "the file is empty"
    assert "not a picture" in opened[3].error
    assert opened[4].error
    assert "4x5 is more than the limit of 19 pixels" in opened[5].error
    assert chunks[-1].total == 6


def test_what_travels_with_pictures_counts_as_held_with_pictures_and_without() -> None:
    """Of sixty samples with a third of CHUNK_PIXELS each, no more than HELD_PIXELS and a chunk wait in the reader."""
    fields = Fields((("npy", bytes(read.CHUNK_PIXELS)),))
    good = found_of(flat(8, 8, 30))
    taken = 0

    def counting() -> Iterator[Found]:
        nonlocal taken
        for found in [*good, *(Found(f"b/{i}", "", None, "the sample has no picture") for i in range(30))]:
            taken += 1
            yield found._replace(fields=fields)

    given = 0
    for chunk in read.open_unit(0, counting(), 4, 1 << 28):
        given += len(chunk.pictures)
        assert taken - given < 3 * read.HELD_PIXELS / read.CHUNK_PIXELS + 4
        assert all(opened.fields == fields for opened in chunk.pictures)
    assert given == taken == 60


def test_metadata_is_kept_where_it_is_asked_for_and_a_file_of_that_name_stays() -> None:
    exif = Image.Exif()
    exif[0x0110] = "Camera"
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG", exif=exif.tobytes(), xmp=b"<x/>")
    found = Found("k", "k.jpg", buffer.getvalue())
    kept = read._keeping(found, ["xmp", "exif"]).fields
    assert [name for name, _ in kept.metadata] == ["picture.exif", "picture.xmp"]
    assert dict(kept.metadata)["picture.xmp"] == b"<x/>"
    assert kept.size == sum(len(data) for _, data in kept.metadata)
    beside = Found("k", "k.jpg", buffer.getvalue(), fields=Fields((("picture.xmp", b"mine"),)))
    assert [name for name, _ in read._keeping(beside, ["xmp", "exif"]).fields.metadata] == ["picture.exif"]
    assert read._keeping(Found("k", "k.jpg", None, "gone"), ["exif"]).fields == Fields()
