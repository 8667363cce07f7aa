from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from corrdiff.decoders import silence_decoders
from corrdiff.images import ImageError, open_image, save_png
from corrdiff.picture import Picture

Draw = Callable[..., Picture]


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _png(header: bytes, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _png16(values: npt.NDArray[np.uint16], colour_type: int) -> bytes:
    """A PNG of 16-bit samples, which Pillow cannot write in colour. values: [H, W, C]."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return _png(struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0), rows)


def _interlaced(pixels: Picture, kept: float = 1.0) -> bytes:
    """A PNG in seven passes, of whose bytes a share is kept."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [pixels[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part if row.size)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return _png(header, rows[: int(kept * len(rows))])


def _linear_light_profile() -> bytes:
    """An ICC profile with the primaries of sRGB and no gamma curve."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*values)

    text = b"Linear light\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {
        b"desc": description + bytes(-len(description) % 4),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4360, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7139),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + bytes(8)),
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    header = struct.pack(
        ">I4sI4s4s4s", 128 + len(table) + len(body), b"\0\0\0\0", 0x02400000, b"mntr", b"RGB ", b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249) + bytes(48)
    return header + table + body


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_rgb_is_opened_exactly(draw: Draw, kind: str) -> None:
    picture = draw(20, 30)
    opened = open_image(_file(Image.fromarray(picture), kind))
    assert np.array_equal(opened.pixels, picture)
    assert opened.changes == ()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_rgb_is_opened_closely(draw: Draw, kind: str) -> None:
    picture = np.repeat(np.repeat(draw(8, 8), 8, axis=0), 8, axis=1)
    opened = open_image(_file(Image.fromarray(picture), kind, quality=95))
    assert np.abs(opened.pixels.astype(int) - picture).mean() < 8
    assert opened.changes == ()


@pytest.mark.parametrize(("mode", "kind"), [("1", "PNG"), ("L", "PNG"), ("L", "JPEG"), ("L", "TIFF"), ("L", "BMP")])
def test_grey_becomes_three_equal_channels(draw: Draw, mode: str, kind: str) -> None:
    opened = open_image(_file(Image.fromarray(draw(20, 30)).convert(mode), kind))
    assert opened.pixels.shape == (20, 30, 3)
    assert (opened.pixels == opened.pixels[..., :1]).all()
    assert opened.changes == ()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted(kind: str) -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    opened = open_image(_file(red, kind))
    assert np.abs(opened.pixels.astype(int) - [255, 0, 0]).max() <= 6


def test_a_palette_is_resolved() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opened = open_image(_file(image, "PNG"))
    assert opened.pixels.tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]
    assert opened.changes == ()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_flattened_on_white(kind: str) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, 3:, 3] = 255
    opened = open_image(_file(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (opened.pixels[:, :3] == 255).all()
    assert (opened.pixels[:, 3:] == 0).all()
    assert opened.changes == ("alpha flattened",)


def test_half_transparent_black_is_grey() -> None:
    opened = open_image(_file(Image.new("LA", (2, 2), (0, 128)), "PNG"))
    assert np.unique(opened.pixels).tolist() == [127]


@pytest.mark.parametrize(("mode", "transparent"), [("L", 0), ("RGB", (0, 0, 0)), ("P", 0)])
def test_a_transparent_colour_is_flattened_on_white(mode: str, transparent: Any) -> None:
    image = Image.new(mode, (4, 4), 0)
    opened = open_image(_file(image, "PNG", transparency=transparent))
    assert (opened.pixels == 255).all()
    assert opened.changes == ("alpha flattened",)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_to_8(kind: str) -> None:
    values = np.array([[0, 257, 32896], [65535, 65278, 128]], np.uint16)
    opened = open_image(_file(Image.fromarray(values), kind))
    assert opened.pixels[..., 0].tolist() == [[0, 1, 128], [255, 254, 0]]
    assert opened.changes == ("depth reduced",)


def test_16_bit_colour_is_scaled_to_8() -> None:
    values = np.array([[[0, 257, 32896], [65535, 65278, 514]]], np.uint16)
    opened = open_image(_png16(values, colour_type=2))
    assert opened.pixels.tolist() == [[[0, 1, 128], [255, 254, 2]]]
    assert opened.changes == ("depth reduced",)


def test_16_bit_alpha_is_reduced_and_flattened() -> None:
    opened = open_image(_png16(np.array([[[0, 0, 0, 65535], [0, 0, 0, 0]]], np.uint16), colour_type=6))
    assert opened.pixels.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert opened.changes == ("depth reduced", "alpha flattened")


def test_floating_point_grey_is_scaled_from_0_to_1() -> None:
    opened = open_image(_file(Image.fromarray(np.array([[0.0, 0.5, 1.0, 7.0]], np.float32)), "TIFF"))
    assert opened.pixels[0, :, 0].tolist() == [0, 128, 255, 255]
    assert opened.changes == ("depth reduced",)


_TURNS: dict[int, Callable[[Picture], Picture]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", _TURNS)
def test_exif_orientation_is_applied(draw: Draw, orientation: int, kind: str) -> None:
    picture = draw(20, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(_file(Image.fromarray(picture), kind, exif=exif.tobytes()))
    assert np.array_equal(opened.pixels, _TURNS[orientation](picture))
    assert opened.changes == ("rotated",)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_lossy_picture_is_rotated_too(draw: Draw, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_image(_file(Image.fromarray(draw(20, 30)), kind, exif=exif.tobytes()))
    assert opened.pixels.shape == (30, 20, 3)
    assert opened.changes == ("rotated",)


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_an_orientation_that_means_nothing_changes_nothing(draw: Draw, orientation: int) -> None:
    picture = draw(20, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(_file(Image.fromarray(picture), "PNG", exif=exif.tobytes()))
    assert np.array_equal(opened.pixels, picture)
    assert opened.changes == ()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    opened = open_image(_file(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert np.array_equal(opened.pixels, np.full((8, 8, 3), [255, 0, 0], np.uint8))
    assert opened.changes == ("first frame",)


def test_an_embedded_profile_is_converted_to_srgb() -> None:
    image = Image.new("RGB", (4, 4), (128, 128, 128))
    opened = open_image(_file(image, "PNG", icc_profile=_linear_light_profile()))
    encoded = 1.055 * (128 / 255) ** (1 / 2.4) - 0.055
    assert np.abs(opened.pixels - 255 * encoded).max() <= 2
    assert opened.changes == ("profile converted",)


def test_an_srgb_profile_changes_nothing(draw: Draw) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = draw(8, 8)
    opened = open_image(_file(Image.fromarray(picture), "PNG", icc_profile=profile))
    assert np.array_equal(opened.pixels, picture)
    assert opened.changes == ()


@pytest.mark.parametrize(
    "profile", [b"not a profile" * 20, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
)
def test_a_profile_that_does_not_fit_is_ignored(draw: Draw, profile: bytes) -> None:
    picture = draw(8, 8)
    opened = open_image(_file(Image.fromarray(picture), "PNG", icc_profile=profile))
    assert np.array_equal(opened.pixels, picture)
    assert opened.changes == ()


def test_changes_are_listed_in_the_order_in_which_they_were_made() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (4, 6), (128, 128, 128, 255))
    opened = open_image(_file(image, "PNG", exif=exif.tobytes(), icc_profile=_linear_light_profile()))
    assert opened.changes == ("rotated", "alpha flattened", "profile converted")


def test_pixels_can_be_handed_to_other_libraries(draw: Draw) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    pixels = open_image(_file(Image.fromarray(draw(5, 7)), "PNG", exif=exif.tobytes())).pixels
    assert pixels.flags.c_contiguous
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.9])
def test_a_truncated_picture_is_refused(draw: Draw, kind: str, kept: float) -> None:
    data = _file(Image.fromarray(draw(40, 60)), kind)
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
    data = _file(Image.fromarray(draw(20, 30)), "PNG")
    with pytest.raises(ImageError, match="30x20 is more than the limit of 599 pixels"):
        open_image(data, max_pixels=599)
    assert open_image(data, max_pixels=600).pixels.shape == (20, 30, 3)


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    data = bytearray(_png16(np.zeros((1, 1, 3), np.uint16), colour_type=2))
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


def test_a_saved_png_is_opened_again(draw: Draw) -> None:
    picture = draw(17, 33)
    assert np.array_equal(open_image(save_png(picture)).pixels, picture)


def _taller(data: bytes, kind: str) -> bytes:
    """The file, its header saying that the picture (of 40 rows) has 400."""
    changed = bytearray(data)
    if kind == "JPEG":
        start = next(i for i in range(len(data)) if data[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
        struct.pack_into(">H", changed, start + 5, 400)
    elif kind == "PNG":
        struct.pack_into(">I", changed, 20, 400)
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
    elif kind == "WEBP":
        struct.pack_into("<H", changed, data.index(b"VP8 ") + 16, 400)
    elif kind == "TIFF":
        directory = struct.unpack_from("<I", data, 4)[0]
        for i in range(struct.unpack_from("<H", data, directory)[0]):
            if struct.unpack_from("<H", data, directory + 2 + 12 * i)[0] == 257:
                struct.pack_into("<H", changed, directory + 2 + 12 * i + 8, 400)
    elif kind == "GIF":
        struct.pack_into("<H", changed, 8, 400)
        struct.pack_into("<H", changed, data.index(b"\x2c\0\0\0\0") + 7, 400)
    elif kind == "BMP":
        struct.pack_into("<i", changed, 22, 400)
    return bytes(changed)


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
    data = _file(Image.fromarray(draw(40, 50)).convert(mode), kind, **options)
    assert open_image(data).pixels.shape == (40, 50, 3)
    with pytest.raises(ImageError, match=r"truncated|broken"):
        open_image(_taller(data, kind))


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_jpeg_that_was_cut_and_closed_again_is_refused(draw: Draw, options: dict[str, Any]) -> None:
    data = _file(Image.fromarray(draw(40, 50)), "JPEG", **options)
    with pytest.raises(ImageError, match="truncated"):
        open_image(data[: len(data) * 2 // 3] + b"\xff\xd9")


def test_bytes_behind_a_jpeg_do_no_harm(draw: Draw) -> None:
    data = _file(Image.fromarray(draw(40, 50)), "JPEG")
    assert np.array_equal(open_image(data + b"appended").pixels, open_image(data).pixels)


def test_a_large_picture_is_put_together_from_its_strips() -> None:
    row = np.arange(1500, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(row[:, None], row[None, ::-1], row[:, None] ^ row[None]), axis=-1)
    image = Image.fromarray(np.ascontiguousarray(picture))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(open_image(_file(image, "PNG")).pixels, picture)
    turned = open_image(_file(image, "PNG", exif=exif))
    assert np.array_equal(turned.pixels, np.rot90(picture, -1))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (5, 1), (3, 4), (17, 33)])
def test_an_interlaced_png_is_opened_or_called_truncated(draw: Draw, height: int, width: int) -> None:
    picture = draw(height, width)
    assert np.array_equal(open_image(_interlaced(picture)).pixels, picture)
    with pytest.raises(ImageError, match="truncated"):
        open_image(_interlaced(picture, kept=0.99))


@pytest.mark.parametrize("compression", ["tiff_deflate", "tiff_lzw"])
def test_a_broken_tiff_says_so_once(draw: Draw, capfd: pytest.CaptureFixture[str], compression: str) -> None:
    silence_decoders()
    data = bytearray(_file(Image.fromarray(draw(40, 50)), "TIFF", compression=compression))
    data[8:108] = bytes(100)
    with pytest.raises(ImageError):
        open_image(bytes(data))
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Pillow's own limit, so low that the test's pictures are more than twice as large."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    return 1000


def test_importing_changes_nothing_in_the_process() -> None:
    code = (
        "import logging, warnings\nimport numpy\nfrom PIL import Image\n"
        "def state(): return Image.MAX_IMAGE_PIXELS, list(warnings.filters), logging.getLogger('PIL').handlers[:]\n"
        "before = state()\nimport corrdiff.images\nassert state() == before, state()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {}),
     ("BMP", {})],
)  # fmt: skip
def test_a_picture_beyond_pillows_limit_is_opened_where_ours_allows_it(
    draw: Draw, low_limit: int, kind: str, options: dict[str, Any]
) -> None:
    data = _file(Image.fromarray(draw(60, 50)), kind, **options)
    assert open_image(data, max_pixels=3000).pixels.shape == (60, 50, 3)
    assert low_limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="more than the limit of 2999 pixels"):
        open_image(data, max_pixels=2999)
    assert low_limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("error")
def test_a_picture_at_which_pillow_would_warn_is_opened_without_a_warning(draw: Draw, low_limit: int) -> None:
    data = _file(Image.fromarray(draw(30, 50)), "TIFF")
    assert open_image(data).pixels.shape == (30, 50, 3)
    assert low_limit == Image.MAX_IMAGE_PIXELS


def test_threads_that_open_large_pictures_leave_pillows_limit_as_it_was(draw: Draw, low_limit: int) -> None:
    files = [_file(Image.fromarray(draw(60, 50, seed)), kind) for seed, kind in enumerate(("WEBP", "TIFF", "PNG"))]
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(open_image, 20 * files))
    assert all(o.pixels.shape == (60, 50, 3) for o in opened)
    assert low_limit == Image.MAX_IMAGE_PIXELS
