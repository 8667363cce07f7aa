from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from corrdiff.images import open_image, save_png
from corrdiff.picture import Picture
from tests.support.image_files import file_of, linear_light_profile, png16

Draw = Callable[..., Picture]


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_rgb_is_opened_exactly(draw: Draw, kind: str) -> None:
    picture = draw(20, 30)
    opened = open_image(file_of(Image.fromarray(picture), kind))
    assert np.array_equal(opened.pixels, picture)
    assert opened.changes == ()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_rgb_is_opened_closely(draw: Draw, kind: str) -> None:
    picture = np.repeat(np.repeat(draw(8, 8), 8, axis=0), 8, axis=1)
    opened = open_image(file_of(Image.fromarray(picture), kind, quality=95))
    assert np.abs(opened.pixels.astype(int) - picture).mean() < 8
    assert opened.changes == ()


@pytest.mark.parametrize(("mode", "kind"), [("1", "PNG"), ("L", "PNG"), ("L", "JPEG"), ("L", "TIFF"), ("L", "BMP")])
def test_grey_becomes_three_equal_channels(draw: Draw, mode: str, kind: str) -> None:
    opened = open_image(file_of(Image.fromarray(draw(20, 30)).convert(mode), kind))
    assert opened.pixels.shape == (20, 30, 3)
    assert (opened.pixels == opened.pixels[..., :1]).all()
    assert opened.changes == ()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted(kind: str) -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    opened = open_image(file_of(red, kind))
    assert np.abs(opened.pixels.astype(int) - [255, 0, 0]).max() <= 6


def test_a_palette_is_resolved() -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    opened = open_image(file_of(image, "PNG"))
    assert opened.pixels.tolist() == [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 255, 0]]]
    assert opened.changes == ()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_flattened_on_white(kind: str) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, 3:, 3] = 255
    opened = open_image(file_of(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (opened.pixels[:, :3] == 255).all()
    assert (opened.pixels[:, 3:] == 0).all()
    assert opened.changes == ("alpha flattened",)


def test_half_transparent_black_is_grey() -> None:
    opened = open_image(file_of(Image.new("LA", (2, 2), (0, 128)), "PNG"))
    assert np.unique(opened.pixels).tolist() == [127]


@pytest.mark.parametrize(("mode", "transparent"), [("L", 0), ("RGB", (0, 0, 0)), ("P", 0)])
def test_a_transparent_colour_is_flattened_on_white(mode: str, transparent: Any) -> None:
    image = Image.new(mode, (4, 4), 0)
    opened = open_image(file_of(image, "PNG", transparency=transparent))
    assert (opened.pixels == 255).all()
    assert opened.changes == ("alpha flattened",)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_to_8(kind: str) -> None:
    values = np.array([[0, 257, 32896], [65535, 65278, 128]], np.uint16)
    opened = open_image(file_of(Image.fromarray(values), kind))
    assert opened.pixels[..., 0].tolist() == [[0, 1, 128], [255, 254, 0]]
    assert opened.changes == ("depth reduced",)


def test_16_bit_colour_is_scaled_to_8() -> None:
    values = np.array([[[0, 257, 32896], [65535, 65278, 514]]], np.uint16)
    opened = open_image(png16(values, colour_type=2))
    assert opened.pixels.tolist() == [[[0, 1, 128], [255, 254, 2]]]
    assert opened.changes == ("depth reduced",)


def test_16_bit_alpha_is_reduced_and_flattened() -> None:
    opened = open_image(png16(np.array([[[0, 0, 0, 65535], [0, 0, 0, 0]]], np.uint16), colour_type=6))
    assert opened.pixels.tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert opened.changes == ("depth reduced", "alpha flattened")


def test_floating_point_grey_is_scaled_from_0_to_1() -> None:
    opened = open_image(file_of(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), "TIFF"))
    assert opened.pixels[0, :, 0].tolist() == [0, 128, 255]
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
    opened = open_image(file_of(Image.fromarray(picture), kind, exif=exif.tobytes()))
    assert np.array_equal(opened.pixels, _TURNS[orientation](picture))
    assert opened.changes == ("rotated",)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_a_lossy_picture_is_rotated_too(draw: Draw, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_image(file_of(Image.fromarray(draw(20, 30)), kind, exif=exif.tobytes()))
    assert opened.pixels.shape == (30, 20, 3)
    assert opened.changes == ("rotated",)


@pytest.mark.parametrize("orientation", [0, 1, 9, 65535])
def test_an_orientation_that_means_nothing_changes_nothing(draw: Draw, orientation: int) -> None:
    picture = draw(20, 30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(file_of(Image.fromarray(picture), "PNG", exif=exif.tobytes()))
    assert np.array_equal(opened.pixels, picture)
    assert opened.changes == ()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    opened = open_image(file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert np.array_equal(opened.pixels, np.full((8, 8, 3), [255, 0, 0], np.uint8))
    assert opened.changes == ("first frame",)


def test_an_embedded_profile_is_converted_to_srgb() -> None:
    image = Image.new("RGB", (4, 4), (128, 128, 128))
    opened = open_image(file_of(image, "PNG", icc_profile=linear_light_profile()))
    encoded = 1.055 * (128 / 255) ** (1 / 2.4) - 0.055
    assert np.abs(opened.pixels - 255 * encoded).max() <= 2
    assert opened.changes == ("profile converted",)


def test_an_srgb_profile_changes_nothing(draw: Draw) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = draw(8, 8)
    opened = open_image(file_of(Image.fromarray(picture), "PNG", icc_profile=profile))
    assert np.array_equal(opened.pixels, picture)
    assert opened.changes == ()


@pytest.mark.parametrize(
    "profile", [b"not a profile" * 20, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
)
def test_a_profile_that_does_not_fit_is_ignored(draw: Draw, profile: bytes) -> None:
    picture = draw(8, 8)
    opened = open_image(file_of(Image.fromarray(picture), "PNG", icc_profile=profile))
    assert np.array_equal(opened.pixels, picture)
    assert opened.changes == ()


def test_changes_are_listed_in_the_order_in_which_they_were_made() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (4, 6), (128, 128, 128, 255))
    opened = open_image(file_of(image, "PNG", exif=exif.tobytes(), icc_profile=linear_light_profile()))
    assert opened.changes == ("rotated", "alpha flattened", "profile converted")


def test_pixels_can_be_handed_to_other_libraries(draw: Draw) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    pixels = open_image(file_of(Image.fromarray(draw(5, 7)), "PNG", exif=exif.tobytes())).pixels
    assert pixels.flags.c_contiguous
    assert pixels.dtype == np.uint8


def test_a_saved_png_is_opened_again(draw: Draw) -> None:
    picture = draw(17, 33)
    assert np.array_equal(open_image(save_png(picture)).pixels, picture)


def test_a_large_picture_is_put_together_from_its_strips() -> None:
    row = np.arange(1500, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(row[:, None], row[None, ::-1], row[:, None] ^ row[None]), axis=-1)
    image = Image.fromarray(np.ascontiguousarray(picture))
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(open_image(file_of(image, "PNG")).pixels, picture)
    turned = open_image(file_of(image, "PNG", exif=exif))
    assert np.array_equal(turned.pixels, np.rot90(picture, -1))
