"""Any picture file the world holds -> RGB uint8, or a sentence that says why not."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from corrdiff.errors import UsageError

if TYPE_CHECKING:  # it brings torch along, which pictures do not need
    from corrdiff.codec import Picture

MAX_PIXELS = 1 << 28

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit; `open_image` has one that callers can raise

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp")


class ImageError(UsageError):
    """The bytes are no picture that can be opened; the message says why."""


class OpenedImage(NamedTuple):
    """A picture and what was done to it."""

    pixels: Picture
    changes: tuple[str, ...]
    """In order: first frame, rotated, depth reduced, alpha flattened, profile converted. Metadata is always dropped."""


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise ImageError(f"{image.width}x{image.height} is more than the limit of {max_pixels} pixels")
            # Loading turns TIFFs and reduces 16-bit colour without a word, so both are asked for before it.
            deep = any(re.search(";16[BLN]", str(tile)) for tile in image.tile)
            turned = image.getexif().get(0x0112, 1) in range(2, 9)
            image.load()
            return _to_rgb(image, turned, deep)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"not a picture in {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow raises nearly anything for hostile bytes
        raise ImageError(f"the picture is broken: {type(error).__name__}: {error}") from None


def _to_rgb(image: Image.Image, turned: bool, deep: bool) -> OpenedImage:
    changes: list[str] = []
    if getattr(image, "n_frames", 1) > 1:
        changes.append("first frame")
    profile = image.info.get("icc_profile")
    if turned:
        image = ImageOps.exif_transpose(image)
        changes.append("rotated")
    if image.mode.startswith("I") or image.mode == "F":
        image = _reduce_depth(image)
        deep = True
    if deep:
        changes.append("depth reduced")
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or (image.mode in ("RGB", "L") and "transparency" in image.info):
        has_alpha = image.mode != "P" or "transparency" in image.info
        image = image.convert("RGBA" if has_alpha else "RGB")
    if image.mode == "RGBA":
        flat = Image.new("RGB", image.size, (255, 255, 255))
        flat.paste(image, mask=image.getchannel("A"))
        image = flat
        changes.append("alpha flattened")
    if profile and image.mode in ("RGB", "L", "CMYK"):
        converted = _to_srgb(image, profile)
        if converted is not None:
            image = converted
            changes.append("profile converted")
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)
    return OpenedImage(np.ascontiguousarray(pixels), tuple(changes))


def _reduce_depth(image: Image.Image) -> Image.Image:
    """16-bit (or float in [0, 1]) grey -> 8-bit grey."""
    values = np.asarray(image).astype(np.float64)
    scale = 255.0 if image.mode == "F" else 255.0 / 65535.0
    return Image.fromarray(np.clip(np.round(values * scale), 0, 255).astype(np.uint8), "L")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image | None:
    """None where the profile is sRGB already, or unusable."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return None


def save_png(pixels: Picture) -> bytes:
    """RGB uint8 [H, W, 3] -> the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()
