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
from PIL.TiffImagePlugin import IMAGELENGTH, TiffImageFile

from corrdiff.errors import UsageError
from corrdiff.picture import Picture

MAX_PIXELS = 1 << 28
"""Pictures beyond this (268 megapixels) are refused unless the caller raises the limit."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".dib")


class ImageError(UsageError):
    """The bytes are no picture that can be opened; the message says why."""


class OpenedImage(NamedTuple):
    """A picture and what was done to it."""

    pixels: Picture
    changes: tuple[str, ...]
    """What was done, in this order: first frame, rotated, depth reduced, alpha flattened, profile converted. Metadata
    is always dropped."""


def open_image(data: bytes, max_pixels: int = MAX_PIXELS) -> OpenedImage:
    """Decode a JPEG, PNG, WebP, TIFF, GIF or BMP.

    EXIF rotation is applied, embedded profiles are converted to sRGB, 16-bit samples are reduced to 8, alpha is
    flattened on white, and of an animation the first frame is taken.

    Raises:
        ImageError: not a picture, truncated, or of more than `max_pixels`.
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
    except Exception as error:  # Pillow raises nearly anything for hostile bytes
        raise ImageError(f"the picture is broken: {type(error).__name__}: {error}") from None


def _open(data: bytes, max_pixels: int) -> OpenedImage:
    image = _identify(data)
    if image.width * image.height > max_pixels:
        raise ImageError(f"{image.width}x{image.height} is more than the limit of {max_pixels} pixels")
    # Loading turns TIFFs and reduces 16-bit colour without a word, so both are asked for before it.
    deep = any(re.search(";16[BLN]", str(tile)) for tile in image.tile)
    turned = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    animated = getattr(image, "is_animated", False)
    _expect_all_of(image, data)
    image.load()
    return _to_rgb(image, animated, turned, deep)


def _identify(data: bytes) -> ImageFile:
    """Open as `Image.open` does, but without asking Pillow's own limit, which is one for the whole process."""
    Image.preinit()
    for name in FORMATS:
        if name not in Image.OPEN:
            Image.init()  # imports all that Pillow has
        factory, accept = Image.OPEN[name]
        if accept is None or accept(data[:16]) is True:
            with contextlib.suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(io.BytesIO(data), "")
    raise ImageError(f"not a picture in {', '.join(FORMATS)}")


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


def _to_rgb(image: Image.Image, animated: bool, turned: bool, deep: bool) -> OpenedImage:
    """Convert a loaded picture to RGB, strip by strip, so that a large one is not in memory in every form at once."""
    changes: list[str] = []
    work: list[Callable[[Image.Image], Image.Image]] = []
    mode = image.mode
    if animated:
        changes.append("first frame")
    if turned:
        changes.append("rotated")
    if mode.startswith("I") or mode == "F":
        work.append(_reduce_depth)
        mode, deep = "L", True
    if deep:
        changes.append("depth reduced")
    if mode in ("P", "PA", "LA", "La", "RGBa") or (mode in ("RGB", "L") and "transparency" in image.info):
        mode = "RGBA" if mode != "P" or "transparency" in image.info else "RGB"
        work.append(operator.methodcaller("convert", mode))
    if mode == "RGBA":
        work.append(_flatten)
        mode = "RGB"
        changes.append("alpha flattened")
    transform = _to_srgb(image.info.get("icc_profile"), mode)
    if transform is not None:
        work.append(transform)
        changes.append("profile converted")
    orientation: int = image.getexif().get(_ORIENTATION, 1)  # what is left of it: TIFFs are upright by now
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
    if image.format == "JPEG":
        kind = "CMYK" if image.mode == "CMYK" else "GRAY"
        try:  # an eighth of the size on each side: all data is read, and next to nothing computed
            simplejpeg.decode_jpeg(data, colorspace=kind, min_height=1, min_width=1, fastdct=True, strict=True)
        except ValueError as error:
            if re.search("premature end|bad huffman|instead of rst", str(error), re.IGNORECASE):
                raise ImageError(f"the picture is truncated or damaged: {error}") from None
    elif image.format == "PNG":
        found, expected = _png_bytes(data)
        if found < expected:
            raise ImageError(f"the picture is truncated: {found:,} of {expected:,} bytes of pixels are there")
    elif isinstance(image, TiffImageFile):
        expected = image.tag_v2[IMAGELENGTH]  # of the stored picture; image.height is that of the turned one
        found = max((tile.extents[3] for tile in image.tile if tile.extents), default=0)
        if found < expected:
            raise ImageError(f"the picture is truncated: {found} of {expected} rows are there")


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


def _reduce_depth(image: Image.Image) -> Image.Image:
    """Reduce 16-bit (or float in [0, 1]) grey to 8-bit grey."""
    scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
    with np.errstate(invalid="ignore"):  # a float may be no number
        values = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8))


def _flatten(image: Image.Image) -> Image.Image:
    """Flatten RGBA to RGB on white."""
    flat = Image.new("RGB", image.size, (255, 255, 255))
    flat.paste(image, mask=image.getchannel("A"))
    return flat


def _to_srgb(profile: bytes | None, mode: str) -> Callable[[Image.Image], Image.Image] | None:
    """Make the conversion, or None where the profile is missing, sRGB already, or does not fit the picture."""
    if not profile or mode not in ("RGB", "L", "CMYK"):
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError):
        return None
    return lambda image: ImageCms.applyTransform(image, transform) or image


def save_png(pixels: Picture) -> bytes:
    """Encode RGB uint8 [H, W, 3] to the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
