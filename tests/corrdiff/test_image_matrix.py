"""Every kind of sample against pixels that are made from its definition: opened rightly, or refused."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms

from corrdiff.images import MAX_SCANS, ImageError, open_image
from tests.support.image_files import chunk, file_of, linear_light_profile, png_of, tiff_of

HEIGHT, WIDTH = 6, 9
Floats = npt.NDArray[np.float64]


def _levels(channels: int, bits: int) -> npt.NDArray[np.int64]:
    """Samples that reach from the least to the most, each channel its own way. [H, W, C]"""
    values = np.random.default_rng(channels).integers(0, 1 << bits, (HEIGHT, WIDTH, channels), dtype=np.int64)
    values[0, 0], values[0, 1] = 0, (1 << bits) - 1
    return values


def _meant(samples: Floats, channels: int, alpha: bool, premultiplied: bool = False) -> Floats:
    """The picture in levels of 255. samples: [H, W, C] from 0 to 1, black is 0."""
    colour = samples[..., : channels - alpha]
    if alpha:
        a = samples[..., -1:]
        colour = (colour if premultiplied else colour * a) + 1 - a
    return 255 * np.broadcast_to(colour, (HEIGHT, WIDTH, 3)).clip(0, 1)


def _linear_to_srgb(levels: Floats) -> Floats:
    c = levels / 255
    return 255 * np.where(c <= 0.0031308, 12.92 * c, 1.055 * c ** (1 / 2.4) - 0.055)


def _off(data: bytes, meant: Floats) -> float | None:
    """How far the opened picture is from what is meant, in levels; None where it is refused."""
    try:
        return float(np.abs(open_image(data).pixels - meant).max())
    except ImageError as error:
        assert error.args[0].isprintable() and error.args[0].isascii()
        return None


_TIFFS = list(itertools.product((1, 2, 4, 8, 12, 16, 32), (0, 1, 2), (False, True), (None, 1, 2), "<>"))


def test_a_tiff_of_integers_is_opened_rightly_or_refused() -> None:
    opened: set[tuple[int, int, bool, int | None]] = set()
    for bits, photometric, planes, alpha, order in _TIFFS:
        channels = (3 if photometric == 2 else 1) + (alpha is not None)
        samples = _levels(channels, bits)
        if alpha == 1:
            samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
        shares = samples / ((1 << bits) - 1)
        if photometric == 0:
            shares[..., 0] = 1 - shares[..., 0]
        data = tiff_of(samples, bits, photometric, planes=planes, alpha=alpha, order=order)
        off = _off(data, _meant(shares, channels, alpha is not None, alpha == 1))
        assert off is None or off <= 3, (bits, photometric, planes, alpha, order, off)
        if off is not None:
            opened.add((bits, photometric, planes, alpha))
    for bits, photometric in itertools.product((1, 2, 4, 8, 16), (0, 1)):
        assert (bits, photometric, False, None) in opened
    assert {(12, 1, False, None), (32, 1, False, None), (8, 2, True, None), (16, 2, False, None), (8, 2, False, 2),
            (16, 2, False, 2)} <= opened  # fmt: skip


def test_a_tiff_of_floating_point_or_with_a_sign_is_opened_rightly_or_refused() -> None:
    shares = np.random.default_rng(0).random((HEIGHT, WIDTH, 1))
    for photometric, order in itertools.product((0, 1), "<>"):
        meant = _meant(1 - shares if photometric == 0 else shares, 1, False)
        off = _off(tiff_of(shares, 32, photometric, kind=3, order=order), meant)
        assert off is None or off <= 1
        assert (off is not None) == (photometric == 1)
    for beyond in (255.0, -0.5, np.nan, np.inf):
        shares[0, 0] = beyond
        with pytest.raises(ImageError, match="beyond white or below black, or that are no numbers"):
            open_image(tiff_of(shares, 32, 1, kind=3))
    for bits in (8, 16, 32):
        signed = np.random.default_rng(1).integers(-100, 100, (HEIGHT, WIDTH, 1))
        with pytest.raises(ImageError):
            open_image(tiff_of(signed, bits, 1, kind=2))


def test_a_profile_holds_for_every_kind_of_picture() -> None:
    """Linear light, in the file as colour and, of grey pictures, as grey."""
    colour, grey = linear_light_profile(), _grey_profile(1.0)
    for channels, bits, container in itertools.product((1, 2, 3, 4), (8, 16), ("png", "tiff")):
        alpha = channels in (2, 4)
        samples = _levels(channels, bits)
        samples[..., -1] = samples[..., -1] if not alpha else ((1 << bits) - 1) * (samples[..., -1] % 2)
        profile = grey if channels < 3 else colour
        if container == "png":
            data = png_of(samples, bits, chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)))
        else:
            data = tiff_of(samples, bits, 2 if channels > 2 else 1, alpha=2 if alpha else None, profile=profile)
        shares = samples / ((1 << bits) - 1)
        solid = 255 * np.broadcast_to(shares[..., : channels - alpha], (HEIGHT, WIDTH, 3))
        meant = np.where(shares[..., -1:] > 0, _linear_to_srgb(solid), 255) if alpha else _linear_to_srgb(solid)
        try:
            off = np.abs(open_image(data).pixels - meant)
        except ImageError:
            assert container == "tiff" and (channels, bits) not in ((1, 8), (3, 8), (4, 8))
            continue
        assert off.max() <= 14, (channels, bits, container)  # a level of linear light is as much in the dark
        assert off[meant > 80].max() <= 2, (channels, bits, container)


def _grey_profile(gamma: float) -> bytes:
    """A grey ICC profile of that gamma: that of linear light with one curve."""
    profile = bytearray(linear_light_profile())
    profile[16:20] = b"GRAY"
    at = profile.index(b"rTRC")
    profile[at : at + 4] = b"kTRC"
    return bytes(profile)


def test_a_profile_is_told_from_srgb_by_what_it_does_and_not_by_its_name() -> None:
    named = linear_light_profile().replace(b"Linear light", b"sRGB linear!")
    picture = Image.new("RGB", (4, 4), (128, 128, 128))
    assert open_image(file_of(picture, "PNG", icc_profile=named)).pixels[0, 0, 0] == 188
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    renamed = srgb.replace("sRGB".encode("utf-16-be"), "AdoB".encode("utf-16-be")).replace(b"sRGB", b"AdoB")
    opened = open_image(file_of(picture, "PNG", icc_profile=renamed))
    assert (opened.pixels == 128).all()
    assert opened.changes == ()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_is_opened_rightly(bits: int, channels: int) -> None:
    if channels > 1 and bits < 8:
        return
    samples = _levels(channels, bits)
    off = _off(png_of(samples, bits), _meant(samples / ((1 << bits) - 1), channels, channels in (2, 4)))
    assert off is not None and off <= 2


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_colour_of_a_grey_png_is_white_and_no_other_is(bits: int) -> None:
    samples = _levels(1, bits)
    for key in {int(samples[2, 3, 0]), int(samples[0, 0, 0]), int(samples[0, 1, 0])}:
        samples[3, 3] = key ^ 1  # its neighbour, at the file's own depth
        data = png_of(samples, bits, chunk(b"tRNS", struct.pack(">H", key)))
        meant = np.where(samples == key, 255, 255 * (samples / ((1 << bits) - 1)))
        assert np.abs(open_image(data).pixels - meant).max() <= 1
        assert "alpha flattened" in open_image(data).changes


def test_the_transparent_colour_of_a_colour_png_is_white_or_it_is_refused() -> None:
    samples = _levels(3, 8)
    data = png_of(samples, 8, chunk(b"tRNS", struct.pack(">3H", *samples[2, 3])))
    meant = np.where((samples == samples[2, 3]).all(axis=-1, keepdims=True), 255, samples)
    assert np.array_equal(open_image(data).pixels, meant)
    with pytest.raises(ImageError, match="a transparent colour of 16 bits"):
        open_image(png_of(_levels(3, 16), 16, chunk(b"tRNS", bytes(6))))


def _exif_text(content: bytes) -> bytes:
    return b"Raw profile type exif\0\0" + zlib.compress(content)


@pytest.mark.parametrize(
    "between",
    [
        chunk(b"eXIf", b"garbage" * 9), chunk(b"zTXt", _exif_text(b"\nexif\n  9\nzz")), chunk(b"zTXt", b"a\0\0nozlib"),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(np.random.default_rng(0).bytes(3 << 20))),
        chunk(b"zTXt", _exif_text(bytes(8 << 20))), chunk(b"tEXt", b"a\0b", wrong=255), chunk(b"iTXt", b"\xff" * 40),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2 << 20))), chunk(b"iCCP", b"x\0\0nozlib"), chunk(b"gAMA", b""),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(linear_light_profile()), wrong=1), chunk(b"pHYs", b"1"),
        chunk(b"tRNS", b"\0"), chunk(b"tRNS", bytes(6), wrong=1), chunk(b"sPLT", bytes(5)), chunk(b"tIME", b"0"),
    ],
)  # fmt: skip
def test_a_png_is_not_refused_for_its_metadata(between: bytes) -> None:
    samples = _levels(3, 8)
    assert np.array_equal(open_image(png_of(samples, 8, between)).pixels, samples)


def test_a_png_whose_pixels_are_ill_checked_is_refused_as_a_png() -> None:
    whole = png_of(_levels(3, 8), 8)
    at = whole.index(b"IDAT") + 9
    with pytest.raises(ImageError, match=r"broken|truncated"):
        open_image(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ImageError, match="it begins as PNG, and its header cannot be read"):
        open_image(whole[:29] + bytes(4) + whole[33:])


@pytest.mark.parametrize("kind", ["WEBP", "JPEG", "PNG", "TIFF"])
def test_exif_that_cannot_be_read_means_upright(kind: str) -> None:
    picture = Image.fromarray(_levels(3, 8).astype(np.uint8))
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    plain = open_image(file_of(picture, kind, **options)).pixels
    if kind == "TIFF":
        return  # its EXIF is the file itself
    assert np.array_equal(open_image(file_of(picture, kind, exif=b"Exif\0\0garbage!", **options)).pixels, plain)


def test_a_damaged_first_picture_of_two_is_refused_as_a_single_one_is() -> None:
    pictures = [Image.effect_noise((64, 64), 60).convert("RGB") for _ in range(2)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "MPO", save_all=True, append_images=pictures[1:])
    whole = buffer.getvalue()
    assert open_image(whole).changes == ("first frame",)
    scan = whole.index(b"\xff\xda") + 200
    with pytest.raises(ImageError, match="truncated or damaged"):
        open_image(whole[:scan] + b"\xff\xd9" + bytes(300) + whole[scan + 302 :])


def test_a_jpeg_of_one_scan_needs_no_end_and_one_of_several_does() -> None:
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    baseline, progressive = (file_of(picture, "JPEG", progressive=p) for p in (False, True))
    assert np.array_equal(open_image(baseline[:-2]).pixels, open_image(baseline).pixels)
    for cut in (3, 4, 10, 100):
        with pytest.raises(ImageError):
            open_image(baseline[:-cut])
    with pytest.raises(ImageError):
        open_image(progressive[:-2])


def test_a_jpeg_of_thousands_of_scans_is_refused_before_they_are_read() -> None:
    progressive = file_of(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match=f"more than {MAX_SCANS} scans"):
        open_image(progressive[:last] + progressive[last:-2] * 2000 + b"\xff\xd9")


@pytest.mark.parametrize("kind", ["AVIF", "PPM"])
def test_more_formats_are_opened_and_what_is_cut_short_is_refused(kind: str) -> None:
    picture = np.repeat(np.repeat(_levels(3, 8), 8, axis=0), 8, axis=1).astype(np.uint8)
    data = file_of(
        Image.fromarray(picture), kind, **({"quality": 100, "subsampling": "4:4:4"} if kind == "AVIF" else {})
    )
    assert np.abs(open_image(data).pixels.astype(int) - picture).mean() <= 2
    for kept in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError):
            open_image(data[: int(kept * len(data))])
    with pytest.raises(ImageError, match="more than the limit"):
        open_image(data, max_pixels=HEIGHT * WIDTH * 64 - 1)


@pytest.mark.parametrize("most", [255, 1023, 65535])
def test_grey_maps_of_any_depth_are_opened_rightly(most: int) -> None:
    samples = (_levels(1, 16) % (most + 1)).astype(">u2" if most > 255 else np.uint8)
    data = b"P5 %d %d %d\n" % (WIDTH, HEIGHT, most) + samples.tobytes()
    assert np.abs(open_image(data).pixels - 255 * samples.astype(float) / most).max() <= 1


def test_a_reason_has_nothing_of_the_file_in_it() -> None:
    rng = np.random.default_rng(0)
    reasons = set()
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "PPM"):
        whole = file_of(Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)), kind)
        for _ in range(60):
            damaged = bytearray(whole[: rng.integers(1, len(whole) + 1)])
            for _ in range(rng.integers(0, 8)):
                damaged[rng.integers(len(damaged))] = rng.integers(256)
            try:
                open_image(bytes(damaged), max_pixels=1 << 20)
            except ImageError as error:
                reasons.add("".join(c for c in str(error) if not c.isdigit()))
    assert all(reason.isascii() and reason.isprintable() for reason in reasons)
    assert len(reasons) < 40, reasons
