"""Crops decode as the general decoder has it, whatever filters the writer chose, and nothing odd is guessed at."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from corrdiff.images import ImageError, open_image, save_png
from pipelines.shards import crop_png
from tests.support.drawn import make_picture


def png_file(rows: bytes, width: int, height: int, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + crop_png.RGB8
    compressed = zlib.compress(rows)
    half = len(compressed) // 2  # in two chunks, as large pictures are
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", compressed[:half]) + chunk(b"IDAT", compressed[half:])
    return crop_png.SIGNATURE + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, "mixed"])
def test_every_filter_is_undone_as_the_general_decoder_does(kind: int | str) -> None:
    rng = np.random.default_rng(0)
    height, width = 17, 23
    rows = rng.integers(0, 256, (height, 3 * width + 1), dtype=np.uint8)
    rows[:, 0] = rng.integers(0, 5, height) if kind == "mixed" else kind
    data = png_file(rows.tobytes(), width, height)
    np.testing.assert_array_equal(crop_png.decode(memoryview(data)), open_image(data).pixels)


def test_what_the_shard_writer_writes_comes_back() -> None:
    pixels = make_picture(96, 128, seed=1)
    np.testing.assert_array_equal(crop_png.decode(memoryview(save_png(pixels))), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_kinds_of_png_take_the_general_way(mode: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(make_picture(32, 48, seed=2)).convert(mode).save(buffer, "PNG")
    data = buffer.getvalue()
    np.testing.assert_array_equal(crop_png.decode(memoryview(data)), open_image(data).pixels)


@pytest.mark.parametrize(
    "damage",
    [lambda d: d[:40], lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:60] + bytes(30) + d[90:]],
    ids=["header alone", "half", "nothing", "overwritten"],
)
def test_damage_is_an_image_error(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(ImageError):
        crop_png.decode(memoryview(damage(save_png(make_picture(64, 64, seed=3)))))
