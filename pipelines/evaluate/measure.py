"""One picture through one system, whole files there and back: the rows of an evaluation's table.

A system is a trained codec or an anchor; its points are what it is asked for. Everything that the table says of a point
is of the file that was written and of the picture that was decoded from it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import platform
import re
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from PIL import Image

from corrdiff import metrics, perceptual
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.decoders import silence_decoders
from corrdiff.errors import is_out_of_memory
from corrdiff.images import ImageError, open_image
from corrdiff.picture import Picture
from pipelines.evaluate import anchors
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.windows import keep_windows
from pipelines.files import storage
from pipelines.inputs import units
from pipelines.inputs.units import Unit
from pipelines.runtime.stages import codec_in_actor, keep_to_one_core

T = TypeVar("T")

QualityOf = Callable[[Picture, Picture], dict[str, float | None]]
"""(original, picture) -> metrics by name."""

ROWS, FAILED = "_rows", "_failed"

SECONDS = {"encode_s_per_mpx": "encode, s/Mpx", "decode_s_per_mpx": "decode, s/Mpx"}
"""Columns of the table with seconds a megapixel, and their titles."""
PEAKS = {"encode_peak_mib": "encode, MiB", "decode_peak_mib": "decode, MiB"}
"""Columns with the most memory that was in use, and their titles."""


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


class RoundTrip(NamedTuple):
    """A picture that went into a file and came back."""

    row: dict[str, Any]
    """What the table says of it."""
    picture: Picture


def stem(key: str, system: str) -> str:
    """The beginning of the names of the files of one picture and one system."""
    return hashlib.blake2b(f"{system}\n{key}".encode(), digest_size=12).hexdigest()


class Measurer:
    """A Ray Data actor: measures pictures, one system at a time, and writes what it found."""

    def __init__(self, out: str, config: EvaluateConfig, device: str) -> None:
        silence_decoders()
        Image.MAX_IMAGE_PIXELS = None  # --max-pixels is the limit of pictures, and of the other codecs' files with them
        keep_to_one_core(device)
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
            trips = list(self._round_trips(original, system))
        except (ImageError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()
            rows = [{**common, "error": reason[0] if reason else type(error).__name__}]
            directory = FAILED  # where it does not count as done
        else:
            height, width = original.shape[:2]
            rows = [{**common, "width": width, "height": height, **trip.row} for trip in trips]
            directory = ROWS
            if place.shown:
                keep_windows(self.out, name, original, trips)
        storage.write_json(storage.join(self.out, directory, f"{name}.json"), rows)
        return {"errors": sum("error" in row for row in rows)}

    def _round_trips(self, original: Picture, system: System) -> Iterator[RoundTrip]:
        if system.codec is None:
            yield from _through_anchor(original, system.name, self._quality)
            return
        codec = self.codecs.get(system.codec)
        if codec is None:
            codec = self.codecs[system.codec] = codec_in_actor(system.codec, self.device, self.config.precision)
        for settings in self.config.points():
            yield from _through_codec(codec, original, settings, self._quality, self.config.decodes_both(settings))

    def _quality(self, original: Picture, picture: Picture) -> dict[str, float | None]:
        return metrics.quality(original, picture, self.lpips)


def _read(place: Place, max_pixels: int) -> Picture:
    found = units.read_picture(place.unit, place.key)
    if found is None or found.data is None:
        raise ImageError(found.error if found else "it is no longer there")
    return open_image(found.data, max_pixels).pixels


def _through_anchor(original: Picture, name: str, quality_of: QualityOf) -> Iterator[RoundTrip]:
    for quality in anchors.ANCHORS[name].qualities:
        file = _timed(functools.partial(anchors.encode, name, original, quality), "cpu")
        picture = _timed(functools.partial(anchors.decode, name, file.result), "cpu")
        asked = {"quality": quality, "fidelity": None, "steps": None, "usual_steps": True, "decoding": None}
        yield _round_trip(asked, original, file, picture, quality_of)


def _through_codec(
    codec: CorrDiffCodec, original: Picture, settings: Settings, quality_of: QualityOf, both: bool
) -> Iterator[RoundTrip]:
    """The file of some settings, decoded as it is meant, and where `both`, by D alone and without the correction."""
    device = codec.device.type
    file = _timed(lambda: codec.compress_batch([original], settings)[0].data, device)
    usual = codec.config.diffusion.steps
    for decoding in ("corrected", "privileged", "uncorrected") if both else ("corrected",):
        picture = _timed(functools.partial(codec.decompress, file.result, decoding, original.size), device)
        asked = {
            "quality": settings.quality, "fidelity": settings.fidelity,
            "steps": usual if settings.steps is None else settings.steps, "usual_steps": settings.steps is None,
            "decoding": decoding,
        }  # fmt: skip
        yield _round_trip(asked, original, file, picture, quality_of)


class Timed(NamedTuple, Generic[T]):
    """What an action gave, and what it took."""

    result: T
    seconds: float
    peak_bytes: int
    """Of the whole process while it ran, or of the GPU's memory."""


def _timed(action: Callable[[], T], device: str) -> Timed[T]:
    _forget_peak(device)
    started = time.perf_counter()
    result = action()
    return Timed(result, time.perf_counter() - started, _peak(device))


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


def _round_trip(
    asked: dict[str, Any], original: Picture, file: Timed[bytes], picture: Timed[Picture], quality_of: QualityOf
) -> RoundTrip:
    height, width = original.shape[:2]
    megapixels = height * width / 1e6
    row = asked | {
        "bytes": len(file.result), "bpp": metrics.bits_per_pixel(len(file.result), height, width),
        **quality_of(original, picture.result),
        "encode_s_per_mpx": file.seconds / megapixels, "decode_s_per_mpx": picture.seconds / megapixels,
        "encode_peak_mib": file.peak_bytes / 2**20, "decode_peak_mib": picture.peak_bytes / 2**20,
    }  # fmt: skip
    return RoundTrip(row, picture.result)


@functools.cache
def _machine(device: str) -> str:
    """The name of what does the work."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"one core of {models[0] if models else platform.machine()}"
