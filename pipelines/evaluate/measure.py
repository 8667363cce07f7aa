"""One picture through one system, whole files there and back: the rows of an evaluation's table.

A system is a trained codec or an anchor; its points are what it is asked for. Everything that the table says of a point
is of the file that was written and of the picture that was decoded from it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import math
import platform
import re
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image

from corrdiff import metrics, perceptual
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.codec_directory import load_codec
from corrdiff.decoders import silence_decoders
from corrdiff.images import ImageError, open_image
from corrdiff.picture import Picture
from pipelines.evaluate import anchors
from pipelines.evaluate.config import EvaluateConfig
from pipelines.files import storage
from pipelines.inputs import units
from pipelines.inputs.units import Unit

T = TypeVar("T")

ROWS, FAILED, WINDOWS = "_rows", "_failed", "_windows"

RATES = (0.1, 0.2, 0.4, 0.8)
"""Of the pictures that are looked at, in bpp: of each system the point that is nearest, by at most RATE_FACTOR."""
RATE_FACTOR = 1.35

WINDOW = 448
"""Side of what is looked at, from the picture's middle: every pixel is kept."""

METRICS = ("psnr_db", "ms_ssim", "texture_error", "lpips", "high_frequency")


@dataclass(frozen=True)  # Ray Data would take a tuple of strings for a list
class System:
    """Something that writes files and reads them."""

    name: str
    """Unique in an evaluation."""
    codec: str | None
    """The codec directory; None for the anchor of that name."""


@dataclass(frozen=True)
class Place:
    """One picture of the evaluation."""

    key: str
    unit: Unit
    shown: bool
    """Whether it is among those to look at."""


class Point(NamedTuple):
    """A file and what was decoded from it."""

    row: dict[str, Any]
    picture: Picture


def stem(key: str, system: str) -> str:
    """What the files of one picture and one system begin with."""
    return hashlib.blake2b(f"{system}\n{key}".encode(), digest_size=12).hexdigest()


class Measurer:
    """A Ray Data actor: measures pictures, one system at a time, and writes what it found."""

    def __init__(self, out: str, config: EvaluateConfig, device: str) -> None:
        silence_decoders()
        Image.MAX_IMAGE_PIXELS = None  # --max-pixels is the limit of pictures, and of the other codecs' files with them
        if device == "cpu":
            torch.set_num_threads(1)  # an actor for each core
        self.out, self.config, self.device = out, config, device
        self.codecs: dict[str, CorrDiffCodec] = {}
        weights = perceptual.lpips_weights(config.lpips_weights)
        self.lpips = perceptual.load_lpips(weights) if weights else None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        place: Place = row["place"]
        system: System = row["system"]
        name = stem(place.key, system.name)
        machine = _machine(self.device if system.codec else "cpu")
        common: dict[str, Any] = {"picture": place.key, "system": system.name, "machine": machine}
        try:
            original = _read(place, self.config.max_pixels)
            points = list(self._points(original, system))
        except (ImageError, OSError, MemoryError, torch.OutOfMemoryError) as error:
            reason = str(error).strip().splitlines()
            rows = [{**common, "error": reason[0] if reason else type(error).__name__}]
            directory = FAILED  # where it does not count as done
        else:
            height, width = original.shape[:2]
            rows = [{**common, "width": width, "height": height, **p.row} for p in points]
            directory = ROWS
            if place.shown:
                self._keep_windows(name, original, points)
        storage.write_json(storage.join(self.out, directory, f"{name}.json"), rows)
        return {"errors": sum("error" in r for r in rows)}

    def _points(self, original: Picture, system: System) -> Iterator[Point]:
        if system.codec is None:
            yield from _anchor_points(original, system.name, self._quality)
            return
        codec = self.codecs.get(system.codec)
        if codec is None:
            codec = self.codecs[system.codec] = load_codec(system.codec, self.device, self.config.precision)
        for settings in self.config.points():
            yield from _codec_points(codec, original, settings, self._quality, self.config.decodes_both(settings))

    def _quality(self, original: Picture, picture: Picture) -> dict[str, float | None]:
        return metrics.quality(original, picture, self.lpips)

    def _keep_windows(self, name: str, original: Picture, points: list[Point]) -> None:
        by_row = {id(point.row): point.picture for point in points}
        for rate in RATES:
            for curve, row in nearest_rows([point.row for point in points], rate).items():
                uri = storage.join(self.out, WINDOWS, f"{name}-{curve}-{rate:g}.webp")
                storage.write_bytes(uri, lossless(window(by_row[id(row)])))
        storage.write_bytes(storage.join(self.out, WINDOWS, f"{name}-original.webp"), lossless(window(original)))


def nearest_rows(rows: list[dict[str, Any]], rate: float) -> dict[str, dict[str, Any]]:
    """Of each of a system's curves the row whose bpp is nearest to `rate`, where one is near enough."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        curve = curve_of(row)
        if curve is None or _distance(row, rate) > math.log(RATE_FACTOR):
            continue
        if curve not in found or _distance(row, rate) < _distance(found[curve], rate):
            found[curve] = row
    return found


def _distance(row: dict[str, Any], rate: float) -> float:
    return abs(math.log(row["bpp"] / rate))


def curve_of(row: dict[str, Any]) -> str | None:
    """Which of its system's curves a row belongs to; None for one of another number of steps, which makes no curve."""
    if row["decoding"] not in ("corrected", "privileged", "uncorrected"):
        return "anchor"
    if not row["usual_steps"]:
        return None
    return f"fidelity-{row['fidelity']:g}" if row["decoding"] == "corrected" else str(row["decoding"])


def window(picture: Picture) -> Picture:
    """The middle of a picture, at most WINDOW pixels a side."""
    top, left = (max(0, (side - WINDOW) // 2) for side in picture.shape[:2])
    return picture[top : top + WINDOW, left : left + WINDOW]


def lossless(picture: Picture) -> bytes:
    """A WebP that keeps every pixel."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "WEBP", lossless=True, quality=70, method=4)
    return buffer.getvalue()


def _read(place: Place, max_pixels: int) -> Picture:
    found = units.read_picture(place.unit, place.key)
    if found is None or found.data is None:
        raise ImageError(found.error if found else "it is no longer there")
    return open_image(found.data, max_pixels).pixels


def _anchor_points(original: Picture, name: str, quality_of: Callable[..., Any]) -> Iterator[Point]:
    for quality in anchors.ANCHORS[name].qualities:
        file, encoding = _timed(functools.partial(anchors.encode, name, original, quality), "cpu")
        picture, decoding = _timed(functools.partial(anchors.decode, name, file), "cpu")
        row = {"quality": quality, "fidelity": None, "steps": None, "usual_steps": True, "decoding": None}
        yield _point(row, original, file, picture, encoding, decoding, quality_of)


def _codec_points(
    codec: CorrDiffCodec, original: Picture, settings: Settings, quality_of: Callable[..., Any], both: bool
) -> Iterator[Point]:
    """The file of some settings, decoded as it is meant, and where `both`, by D alone and without the correction."""
    device = codec.device.type
    file, encoding = _timed(lambda: codec.compress_batch([original], settings)[0].data, device)
    usual = codec.config.diffusion.steps
    for decoding in ("corrected", "privileged", "uncorrected") if both else ("corrected",):
        picture, spent = _timed(functools.partial(codec.decompress, file, decoding, original.size), device)
        row = {
            "quality": settings.quality, "fidelity": settings.fidelity, "steps": settings.steps or usual,
            "usual_steps": settings.steps is None, "decoding": decoding,
        }  # fmt: skip
        yield _point(row, original, file, picture, encoding, spent, quality_of)


class Spent(NamedTuple):
    seconds: float
    peak_bytes: int
    """Of the whole process while it ran, or of the GPU's memory."""


def _timed(action: Callable[[], T], device: str) -> tuple[T, Spent]:
    _forget_peak(device)
    started = time.perf_counter()
    result = action()
    return result, Spent(time.perf_counter() - started, _peak(device))


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # where that is not to be had, the peak is the process's so far
            Path("/proc/self/clear_refs").write_text("5")


def _peak(device: str) -> int:
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _point(
    row: dict[str, Any], original: Picture, file: bytes, picture: Picture, encoding: Spent, decoding: Spent,
    quality_of: Callable[..., dict[str, float | None]],
) -> Point:  # fmt: skip
    height, width = original.shape[:2]
    megapixels = height * width / 1e6
    row = row | {
        "bytes": len(file), "bpp": metrics.bits_per_pixel(len(file), height, width), **quality_of(original, picture),
        "encode_s_per_mpx": encoding.seconds / megapixels, "decode_s_per_mpx": decoding.seconds / megapixels,
        "encode_peak_mib": encoding.peak_bytes / 2**20, "decode_peak_mib": decoding.peak_bytes / 2**20,
    }  # fmt: skip
    return Point(row, picture)


@functools.cache
def _machine(device: str) -> str:
    """What does the work."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"one core of {models[0] if models else platform.machine()}"
