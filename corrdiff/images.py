"""Any picture file the world holds -> RGB uint8, or a sentence that says why not."""

from __future__ import annotations

import contextlib
import io
import operator
import re
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    IMAGELENGTH,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    TiffImageFile,
)

from corrdiff.errors import UsageError
from corrdiff.picture import Picture

MAX_PIXELS = 1 << 28
"""Pictures beyond this (268 megapixels) are refused unless the caller raises the limit."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "PPM")
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".dib", ".avif", ".ppm",
    ".pgm", ".pbm", ".pnm",
)  # fmt: skip

MAX_SCANS = 256
"""Of a JPEG: each is a pass over all of the picture, and a small file may ask for thousands."""


class ImageError(UsageError):
    """The bytes are no picture that can be opened; the message says why."""


class OpenedImage(NamedTuple):
    """A picture and what was done to it."""

    pixels: Picture
    changes: tuple[str, ...]
    """What was done, in this order: first frame, rotated, depth reduced, alpha flattened, profile converted. Metadata
    is always dropped."""


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """Decode a JPEG, PNG, WebP, TIFF, GIF, BMP, AVIF or PPM.

    EXIF rotation is applied, embedded profiles are converted to sRGB, deeper samples are reduced to 8 bits, alpha and
    transparent colours are flattened on white, and of an animation the first frame is taken. What Pillow gets wrong is
    refused.

    Raises:
        ImageError: not a picture, truncated, of a kind that cannot be opened rightly, or of more than `max_pixels`. The
            message has nothing of the file in it but numbers.
    """
    if not data:
        raise ImageError("the file is empty")
    try:
        try:
            return _open(data, max_pixels)
        except _BOMB:  # some of Pillow's decoders look at its own limit, whatever ours is
            with _pillows_limit(max_pixels):
                return _open(data, max_pixels)
    except ImageError:
        raise
    except _BOMB:
        raise ImageError(f"the picture has more than the limit of {max_pixels} pixels") from None
    except MemoryError:
        raise ImageError("the picture is too large for the memory") from None
    except Exception as error:  # Pillow raises nearly anything for hostile bytes, and quotes them
        if "truncated" in str(error):
            raise ImageError("the picture is truncated") from None
        kind = "damaged data" if isinstance(error, zlib.error) else type(error).__name__
        raise ImageError(f"the picture is broken ({kind})") from None


def _open(data: bytes, max_pixels: int) -> OpenedImage:
    png = None
    if data[:8] == PNG_SIGNATURE:
        png = _read_png(data)
        data = png.data
    elif data[:2] == b"\xff\xd8":
        data = _with_end(data)
    image = identify(data)
    if image.width * image.height > max_pixels:
        raise ImageError(f"{image.width}x{image.height} is more than the limit of {max_pixels} pixels")
    # Loading turns TIFFs and reduces 16-bit colour without a word, so both are asked for before it.
    deep = any(re.search(";16[BLN]", str(tile)) for tile in image.tile)
    turned = _orientation(image) in range(2, 9)
    animated = getattr(image, "is_animated", False)
    grey = _grey_of_tiff(image) if isinstance(image, TiffImageFile) else _Grey(_WHITE_16)
    _expect_all_of(image, data)
    image.load()
    if png is not None:
        image.info["icc_profile"] = png.profile
        if png.transparent is not None:
            image.info["transparency"] = png.transparent
        if image.mode == "RGBA" and data[25] == _PNG_GREY_ALPHA:  # of 16 bits
            grey_alpha = Image.merge("LA", (image.getchannel("R"), image.getchannel("A")))
            grey_alpha.info = image.info
            return _to_rgb(grey_alpha, animated, turned, deep, grey)
    return _to_rgb(image, animated, turned, deep, grey)


def _orientation(image: Image.Image) -> int:
    """How the camera was held; 1, upright, where the metadata cannot be read: it is dropped anyway."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises nearly anything for garbage
        return 1


def identify(data: bytes) -> ImageFile:
    """Open as `Image.open` does, the header alone, without asking Pillow's own limit, which is the whole process's."""
    Image.preinit()
    begins: list[str] = []
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()  # imports all that Pillow has
        factory, accept = Image.OPEN[name]
        if accept is None or accept(data[:16]) is True:
            begins.append(name)
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(io.BytesIO(data), "")
    if begins:
        raise ImageError(f"the picture is broken: it begins as {begins[0]}, and its header cannot be read")
    raise ImageError(f"not a picture in {', '.join(FORMATS)}")


# --- PNG: Pillow is given the pixels alone, for it refuses a picture for its metadata


_PNG_GREY_ALPHA = 4
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"acTL", b"fcTL", b"fdAT")
_EXIF_TEXT = b"Raw profile type exif\0"
MAX_PROFILE_BYTES = 1 << 26
_MAX_EXIF_BYTES = 1 << 16


class _Png(NamedTuple):
    data: bytes
    """A PNG with the chunks of the pixels, of a palette's transparency, and of the camera's orientation alone."""
    profile: bytes | None
    transparent: int | tuple[int, int, int] | None
    """The samples that are transparent, as Pillow has them after loading."""


def _read_png(data: bytes) -> _Png:
    """Take apart. A chunk that is no pixels and whose checksum is wrong is as if it were not there, as in libpng."""
    kept: list[bytes | memoryview] = [PNG_SIGNATURE]
    profile, trns, at = None, None, 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk, end = memoryview(data)[at : at + 12 + length], at + 12 + length
        at = end
        if kind in _PIXEL_CHUNKS or end > len(data):
            kept.append(chunk)
            continue
        if kind not in (b"iCCP", b"tRNS", b"eXIf", b"tEXt", b"zTXt"):
            continue
        content = bytes(chunk[8:-4])
        if zlib.crc32(content, zlib.crc32(kind)) != int.from_bytes(chunk[-4:], "big"):
            continue
        if kind == b"iCCP":
            profile = inflated(content.partition(b"\0")[2][1:], MAX_PROFILE_BYTES)
        elif kind == b"tRNS":
            trns = content
            if data[25] == 3:
                kept.append(chunk)
        elif kind == b"eXIf" or _is_exif_text(kind, content):
            kept.append(chunk)
    kept.append(memoryview(data)[at:])
    return _Png(b"".join(kept), profile, _transparent(data, trns))


def _is_exif_text(kind: bytes, content: bytes) -> bool:
    """Whether a text is the EXIF of programs that are older than the chunk for it, and of a size that can be."""
    if not content.startswith(_EXIF_TEXT):
        return False
    packed = content[len(_EXIF_TEXT) + 1 :] if kind == b"zTXt" else b""
    return len(content) <= _MAX_EXIF_BYTES and (not packed or inflated(packed, _MAX_EXIF_BYTES) is not None)


def inflated(packed: bytes, most: int) -> bytes | None:
    """Unpacked; None where that is broken or too large."""
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(packed, most)
    except zlib.error:
        return None
    return data if inflate.eof else None


def _transparent(data: bytes, trns: bytes | None) -> int | tuple[int, int, int] | None:
    """What a transparent colour of the file's own depth is after loading: Pillow gives grey of less than 8 bits 8."""
    depth, colour = data[24], data[25]
    if trns is None or len(trns) != {0: 2, 2: 6}.get(colour):
        return None
    samples: tuple[int, ...] = struct.unpack(f">{len(trns) // 2}H", trns)
    if colour == 2:
        if depth == 16:
            raise ImageError("a transparent colour of 16 bits a sample cannot be told from its neighbours")
        return samples[0] & 255, samples[1] & 255, samples[2] & 255
    value = samples[0] & (1 << depth) - 1
    return value if depth == 16 else value * 255 // ((1 << depth) - 1)


@contextlib.contextmanager
def _pillows_limit(pixels: int) -> Iterator[None]:
    """Raise Pillow's own limit as high as that for the length of a block, in one thread at a time."""
    with _limit_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None if before is None else max(before, pixels)
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


_limit_lock = threading.Lock()
_BOMB = Image.DecompressionBombError, Image.DecompressionBombWarning


class _Grey(NamedTuple):
    """What deep grey samples mean."""

    white: float
    """The sample that is white, or black where it is `inverted`; 1 of floating point."""
    inverted: bool = False
    unsigned: bool = False
    """Whether 32 bits, which Pillow has with a sign, are meant without."""


_WHITE_16 = 65535.0


def _grey_of_tiff(image: TiffImageFile) -> _Grey:
    """What the grey samples of a TIFF mean. Raises `ImageError` for kinds that Pillow opens with other pixels."""
    tags = image.tag_v2
    samples = int(tags.get(SAMPLESPERPIXEL, 1))
    bits, formats = tags.get(BITSPERSAMPLE, (1,)), tags.get(SAMPLEFORMAT, (1,))
    depth, number, inverted = bits[0], formats[0], tags.get(PHOTOMETRIC_INTERPRETATION, 0) == 0
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise ImageError("a TIFF whose samples are of different kinds")
    if number == 2:
        raise ImageError("a TIFF of samples with a sign: nobody knows what is black in it")
    if image.mode == "LAB":
        raise ImageError("a TIFF in CIELab")
    if tags.get(PLANAR_CONFIGURATION, 1) == 2 and (depth != 8 or inverted):
        raise ImageError(f"a TIFF in planes of {depth} bits{' in which 0 is white' if inverted else ''}")
    if samples > 1 and depth > 8 and inverted:
        raise ImageError(f"a TIFF of {depth} bits with alpha in which 0 is white")
    if number == 3 or image.mode == "F":
        if inverted:
            raise ImageError("a TIFF of floating point in which 0 is white")
        return _Grey(1.0)
    return _Grey(float((1 << depth) - 1), inverted, unsigned=depth == 32)


def _to_rgb(image: Image.Image, animated: bool, turned: bool, deep: bool, grey: _Grey) -> OpenedImage:
    """Convert a loaded picture to RGB, strip by strip, so that a large one is not in memory in every form at once."""
    changes: list[str] = []
    work: list[Callable[[Image.Image], Image.Image]] = []
    mode = image.mode
    if animated:
        changes.append("first frame")
    if turned:
        changes.append("rotated")
    transparent = "transparency" in image.info
    if mode.startswith("I") or mode == "F":
        key = image.info.get("transparency") if mode.startswith("I") else None
        work.append(lambda strip: _reduce_depth(strip, grey, key))
        mode, deep, transparent = "L" if key is None else "LA", True, False
    if deep:
        changes.append("depth reduced")
    if mode in ("P", "PA", "RGBa") or (mode == "RGB" and transparent):
        mode = "RGBA" if mode != "P" or transparent else "RGB"
        work.append(operator.methodcaller("convert", mode))
    elif mode in ("1", "La") or (mode == "L" and transparent):
        mode = "L" if mode == "1" and not transparent else "LA"
        work.append(operator.methodcaller("convert", mode))
    flattened = mode in ("RGBA", "LA")
    if flattened:
        changes.append("alpha flattened")
    transform = _to_srgb(image.info.get("icc_profile"), "L" if mode == "LA" else "RGB" if mode == "RGBA" else mode)
    if transform is not None:
        changes.append("profile converted")
    if flattened:
        work.append(lambda strip: _flatten(strip, transform))
    elif transform is not None:
        work.append(transform)
    orientation = _orientation(image)  # what is left of it: TIFFs are upright by now
    height, width = (image.width, image.height) if orientation in range(5, 9) else (image.height, image.width)
    pixels = np.empty((height, width, 3), np.uint8)
    view = _AS_STORED[orientation](pixels) if orientation in _AS_STORED else pixels
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(image.height, top + rows)))
        for step in work:
            strip = step(strip)
        view[top : top + rows] = np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))
    return OpenedImage(pixels, tuple(changes))


def _expect_all_of(image: Image.Image, data: bytes) -> None:
    """Refuse what Pillow would fill up with grey or black: less data than the header says.

    The other formats' decoders find that out for themselves.
    """
    if image.format in ("JPEG", "MPO"):  # a phone's second picture is for others
        if data.count(b"\xff\xda") > MAX_SCANS:
            raise ImageError(f"a JPEG of more than {MAX_SCANS} scans")
        kind = "CMYK" if image.mode == "CMYK" else "GRAY"
        try:  # an eighth of the size on each side: all data is read, and next to nothing computed
            simplejpeg.decode_jpeg(data, colorspace=kind, min_height=1, min_width=1, fastdct=True, strict=True)
        except ValueError as error:
            problem = re.search("premature end|bad huffman|instead of rst", str(error), re.IGNORECASE)
            if problem:
                raise ImageError(f"the picture is truncated or damaged: {problem[0].lower()}") from None
    elif image.format == "PNG":
        found, expected = _png_bytes(data)
        if found < expected:
            raise ImageError(f"the picture is truncated: {found:,} of {expected:,} bytes of pixels are there")
    elif isinstance(image, TiffImageFile):
        expected = image.tag_v2[IMAGELENGTH]  # of the stored picture; image.height is that of the turned one
        found = max((tile.extents[3] for tile in image.tile if tile.extents), default=0)
        if found < expected:
            raise ImageError(f"the picture is truncated: {found} of {expected} rows are there")


def _with_end(data: bytes) -> bytes:
    """A JPEG with an end, where that alone is missing: of one scan, which is all there or is seen to break off.

    Of several nobody can say whether there was another.
    """
    scan = data.find(b"\xff\xda")
    return data if data.count(b"\xff\xda") != 1 or b"\xff\xc2" in data[:scan] else data + b"\xff\xd9"


def _png_bytes(data: bytes) -> tuple[int, int]:
    """Count the unpacked bytes of pixels that are there (up to the need), and those that the header asks for."""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    interlaced = data[28] == 1
    expected = 0
    for top, left, down, right in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        rows, columns = -(-(height - top) // down), -(-(width - left) // right)
        expected += rows * (1 + (columns * bits + 7) // 8) if rows > 0 and columns > 0 else 0
    inflate, found, position = zlib.decompressobj(), 0, 8
    while found < expected and position + 8 <= len(data):
        length = struct.unpack_from(">I", data, position)[0]
        if data[position + 4 : position + 8] == b"IDAT":
            packed = data[position + 8 : position + 8 + length]
            while packed and not inflate.eof:
                found += len(inflate.decompress(packed, 1 << 20))
                packed = inflate.unconsumed_tail
        position += 12 + length
    return found, expected


_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column of each pass of an interlaced PNG, and the distances to the next."""

_ORIENTATION = 0x0112
"""EXIF tag: 1 is upright, 2 to 8 are the other ways to hold a camera and to mirror."""

# An upright picture [H, W, 3] -> a view of it in the order in which the file stores its pixels, by EXIF orientation.
_AS_STORED: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: np.rot90(upright, -1),
}

_STRIP_PIXELS = 1 << 20


def _reduce_depth(image: Image.Image, grey: _Grey, transparent: int | None) -> Image.Image:
    """Reduce deep grey, or floating point in [0, 1], to 8-bit grey, with alpha where a sample is transparent."""
    samples = np.asarray(image)
    if grey.unsigned and samples.dtype == np.int32:
        samples = samples.view(np.uint32)
    values = samples.astype(np.float64) / grey.white
    if not ((values >= 0) & (values <= 1)).all():
        raise ImageError("grey samples beyond white or below black, or that are no numbers")
    if grey.inverted:
        values = 1 - values
    reduced = Image.fromarray(np.round(values * 255).astype(np.uint8))
    if transparent is None:
        return reduced
    alpha = Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", (reduced, alpha))


def _flatten(image: Image.Image, to_srgb: Callable[[Image.Image], Image.Image] | None) -> Image.Image:
    """Flatten RGBA or LA to RGB on white; its colours are converted before, since white is sRGB's."""
    colour = image.convert("RGB") if image.mode == "RGBA" else image.getchannel("L")
    if to_srgb is not None:
        colour = to_srgb(colour)
    flat = Image.new("RGB", image.size, (255, 255, 255))
    flat.paste(colour.convert("RGB"), mask=image.getchannel("A"))
    return flat


def _to_srgb(profile: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Make the conversion, or None where the profile is missing, does not fit the picture, or changes nothing."""
    if not profile or mode not in ("RGB", "L", "CMYK"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode != "CMYK":
        shown = np.asarray(ImageCms.applyTransform(_COLOURS[mode], transform)).astype(np.int16)
        if np.abs(shown - np.asarray(_COLOURS[mode].convert("RGB"))).max() <= _SAME_COLOUR:
            return None  # sRGB by another maker, whatever it is called
    return lambda image: ImageCms.applyTransform(image, transform) or image


_SAME_COLOUR = 1
_STEPS = np.linspace(0, 255, 9).round().astype(np.uint8)
_COLOURS = {
    "L": Image.fromarray(np.arange(256, dtype=np.uint8)[None]),
    "RGB": Image.fromarray(np.stack(np.meshgrid(_STEPS, _STEPS, _STEPS), axis=-1).reshape(27, 27, 3)),
}
"""Colours by which a profile is told from sRGB."""


def save_png(pixels: Picture) -> bytes:
    """Encode RGB uint8 [H, W, 3], or grey [H, W], to the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
