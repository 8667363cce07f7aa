"""The codecs that people know, to stand beside ours: encoders of kept libraries, at the settings that are written here.

Encoders run at the effort at which they are usually measured, not at their quickest, and all on one core.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
from PIL import AvifImagePlugin, Image, features
from pillow_jxl import JpegXLImagePlugin

from corrdiff.picture import Picture

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # of decoding; encoders are told below
JpegXLImagePlugin.DECODE_THREADS = 0  # none beside the caller's


class Anchor(NamedTuple):
    """One codec and its range."""

    title: str
    color: str
    """Of its curves: a cold one, and no other anchor's."""
    pillow_format: str
    library: Callable[[], str]
    """Its name and version."""
    qualities: tuple[float, ...]
    """Its quality settings in its own terms, from small files to large ones."""
    options: Callable[[float], dict[str, Any]]
    """What Pillow is told for one of them."""
    settings: str
    """The same in words."""


ANCHORS: dict[str, Anchor] = {
    "jpeg": Anchor(
        "JPEG", "#1f77b4", "JPEG", lambda: f"libjpeg-turbo {features.version('libjpeg_turbo')}",
        (2, 5, 8, 12, 17, 25, 35, 50, 65, 80, 90),
        lambda quality: {"quality": int(quality), "optimize": True, "progressive": True},
        "quality; progressive, optimised Huffman tables, 4:2:0",
    ),
    "jpeg2000": Anchor(
        "JPEG 2000", "#2ca02c", "JPEG2000", lambda: f"OpenJPEG {features.version('jpg_2000')}",
        (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2, 1.8),
        lambda bpp: {
            "quality_mode": "rates", "quality_layers": [24 / bpp], "irreversible": True, "mct": 1, "no_jp2": True
        },
        "bits a pixel asked for; 9/7 wavelet, irreversible colour transform, one layer, no JP2 box",
    ),
    "webp": Anchor(
        "WebP", "#17becf", "WEBP", lambda: f"libwebp {features.version('webp')}",
        (0, 5, 10, 20, 30, 45, 60, 75, 85, 92),
        lambda quality: {"quality": int(quality), "method": 6},
        "quality; method 6",
    ),
    "avif": Anchor(
        "AVIF", "#5a6a7a", "AVIF", lambda: f"libavif {features.version('avif')} (libaom)",
        (5, 15, 25, 35, 45, 55, 70, 85),
        lambda quality: {"quality": int(quality), "speed": 6, "codec": "aom", "max_threads": 1},
        "quality; speed 6, 4:2:0",
    ),
    "jxl": Anchor(
        "JPEG XL", "#7d9d2c", "JXL", lambda: f"libjxl in pillow-jxl-plugin {version('pillow-jxl-plugin')}",
        (1, 5, 10, 20, 35, 50, 65, 80, 90),
        lambda quality: {"quality": int(quality), "effort": 7, "num_threads": 0},
        "quality; effort 7",
    ),
}  # fmt: skip


def description(name: str) -> str:
    """Say what makes an anchor's files, with versions."""
    anchor = ANCHORS[name]
    return f"{anchor.library()} through Pillow {version('pillow')}: {anchor.settings}"


def encode(name: str, picture: Picture, quality: float) -> bytes:
    """Encode an RGB picture, uint8 [H, W, 3] -> the whole file, without any metadata.

    Raises `OSError` where the encoder refuses.
    """
    anchor = ANCHORS[name]
    buffer = io.BytesIO()
    with _refusals(anchor):
        Image.fromarray(np.ascontiguousarray(picture)).save(buffer, anchor.pillow_format, **anchor.options(quality))
    return buffer.getvalue()


def decode(name: str, data: bytes) -> Picture:
    """Decode a whole file -> RGB picture, uint8 [H, W, 3]. Raises `OSError` where the decoder refuses."""
    anchor = ANCHORS[name]
    with _refusals(anchor), Image.open(io.BytesIO(data), formats=[anchor.pillow_format]) as image:
        return np.asarray(image.convert("RGB"))


@contextlib.contextmanager
def _refusals(anchor: Anchor) -> Iterator[None]:
    """Each library has its own exceptions: one kind for all."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise OSError(f"{anchor.title}: {error}") from error
