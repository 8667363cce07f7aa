"""What is no picture, or not all of one, gets a sentence that says so."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from corrdiff.decoders import silence_decoders
from corrdiff.images import ImageError, open_image
from corrdiff.picture import Picture
from tests.support.image_files import file_of, interlaced, png16, taller

Draw = Callable[..., Picture]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_a_truncated_picture_is_refused(draw: Draw, kind: str, kept: float) -> None:
    data = file_of(Image.fromarray(draw(40, 60)), kind)
    with pytest.raises(ImageError, match=r"broken|truncated|not a picture"):
        open_image(data[: int(kept * len(data))])


@pytest.mark.parametrize("data", [b"just some text\n", b"CRDF" + bytes(50), b"\x89PNG\r\n\x1a\n", b"<svg></svg>"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        open_image(data)


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(ImageError, match="the file is empty"):
        open_image(b"")


def test_a_picture_over_the_limit_is_refused(draw: Draw) -> None:
    data = file_of(Image.fromarray(draw(20, 30)), "PNG")
    with pytest.raises(ImageError, match="30x20 is more than the limit of 599 pixels"):
        open_image(data, max_pixels=599)
    assert open_image(data, max_pixels=600).pixels.shape == (20, 30, 3)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    data = bytearray(png16(np.zeros((1, 1, 3), np.uint16), colour_type=2))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(ImageError, match="60000x60000 is more than the limit of 268435456 pixels"):
        open_image(bytes(data))


def test_random_bytes_behind_a_right_start_are_refused() -> None:
    rng = np.random.default_rng(0)
    for start in (b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF\x40\0\0\0WEBPVP8 "):
        for _ in range(20):
            with pytest.raises(ImageError):
                open_image(start + rng.bytes(60))


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        *[(kind, "RGB", {}) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")],
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("PNG", "1", {}),
        ("PNG", "LA", {}),
        ("PNG", "RGBA", {}),
        *[("TIFF", "RGB", {"compression": c}) for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")],
    ],
)
def test_a_header_that_promises_more_rows_than_there_are_is_refused(
    draw: Draw, kind: str, mode: str, options: dict[str, Any]
) -> None:
    data = file_of(Image.fromarray(draw(40, 50)).convert(mode), kind, **options)
    assert open_image(data).pixels.shape == (40, 50, 3)
    with pytest.raises(ImageError, match=r"truncated|broken"):
        open_image(taller(data, kind))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_that_was_cut_and_closed_again_is_refused(draw: Draw, options: dict[str, Any]) -> None:
    data = file_of(Image.fromarray(draw(40, 50)), "JPEG", **options)
    with pytest.raises(ImageError, match="truncated"):
        open_image(data[: len(data) * 2 // 3] + b"\xff\xd9")


def test_bytes_behind_a_jpeg_do_no_harm(draw: Draw) -> None:
    data = file_of(Image.fromarray(draw(40, 50)), "JPEG")
    assert np.array_equal(open_image(data + b"appended").pixels, open_image(data).pixels)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1), (3, 4), (17, 33)])
def test_an_interlaced_png_is_opened_or_called_truncated(draw: Draw, height: int, width: int) -> None:
    picture = draw(height, width)
    assert np.array_equal(open_image(interlaced(picture)).pixels, picture)
    with pytest.raises(ImageError, match="truncated"):
        open_image(interlaced(picture, kept=0.99))


@pytest.mark.parametrize("compression", ["tiff_deflate", "tiff_lzw"])
def test_a_broken_tiff_says_so_once(draw: Draw, capfd: pytest.CaptureFixture[str], compression: str) -> None:
    silence_decoders()
    data = bytearray(file_of(Image.fromarray(draw(40, 50)), "TIFF", compression=compression))
    data[8:108] = bytes(100)
    with pytest.raises(ImageError):
        open_image(bytes(data))
    assert capfd.readouterr() == ("", "")
