"""One picture through one system, as rows of an evaluation's table.

A system's points are what it is asked for. Everything that the table says of a point is of the file that was written
and of the picture that was decoded from it. Coding may be a stage of its own, on GPUs; measuring is on cores.
"""

from __future__ import annotations

import functools
import hashlib
import io
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from corrdiff import metrics
from corrdiff.decoders import silence_decoders
from corrdiff.errors import UsageError, is_out_of_memory
from corrdiff.images import ImageError, open_image
from corrdiff.metrics import SAMPLINGS, Networks
from corrdiff.picture import Picture
from pipelines.evaluate.coded import Coded
from pipelines.evaluate.coding import Coder
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.systems import System
from pipelines.evaluate.windows import keep_windows
from pipelines.files import storage
from pipelines.inputs import units
from pipelines.inputs.units import Unit
from pipelines.runtime.stages import keep_to_one_core

ROWS, FAILED, SAMPLES = "_rows", "_failed", "_samples"

SECONDS = {"encode_s_per_mpx": "encode, s/Mpx", "decode_s_per_mpx": "decode, s/Mpx"}
"""Columns of the table with seconds a megapixel, and their titles."""
PEAKS = {"encode_peak_mib": "encode, MiB", "decode_peak_mib": "decode, MiB"}
"""Columns with the most memory that was in use, and their titles."""


@dataclass(frozen=True)
class Place:
    """One picture of the evaluation."""

    key: str
    unit: Unit
    shown: bool
    """Whether it is among those to look at."""
    number: int
    """Which of all pictures it is."""


def stem(key: str, system: str) -> str:
    """The beginning of the names of the files of one picture and one system."""
    return hashlib.blake2b(f"{system}\n{key}".encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Tried:
    """What coding a picture gave: the points, or the reason why there are none."""

    original: Picture | None
    """None where it could not be coded."""
    coded: list[Coded]
    machine: str
    error: str = ""


class CodecStage:
    """A Ray Data actor with a GPU: codes pictures with our codecs, and hands on what it is not for."""

    def __init__(self, config: EvaluateConfig, device: str) -> None:
        _begin(device)
        self.coder = Coder(config, device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        ours = row["system"].ours
        return {**row, "tried": try_coding(self.coder, row["place"], row["system"]) if ours else None}


class Measurer:
    """A Ray Data actor on a core: measures pictures, one system at a time, and writes what it found.

    It codes what no stage before it has coded.
    """

    def __init__(self, out: str, config: EvaluateConfig, pictures: int) -> None:
        _begin("cpu")
        self.out, self.pictures = out, pictures
        self.coder = Coder(config, "cpu")
        self.networks = metrics.load_networks(config.weights)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        place: Place = row["place"]
        system: System = row["system"]
        tried: Tried = row.get("tried") or try_coding(self.coder, place, system)
        name = stem(place.key, system.name)
        common: dict[str, Any] = {"picture": place.key, "system": system.name, "machine": tried.machine}
        if tried.original is None:
            rows = [{**common, "error": tried.error}]
            directory = FAILED  # where it does not count as done
        else:
            height, width = tried.original.shape[:2]
            common |= {"width": width, "height": height}
            rows = [{**common, **table_row(tried.original, coded, self.networks)} for coded in tried.coded]
            directory = ROWS
            if place.shown:
                shown = [coded.picture for coded in tried.coded]
                keep_windows(self.out, name, tried.original, list(zip(rows, shown, strict=True)))
            kept = samples(tried.original, tried.coded, place.number, self.pictures, self.networks)
            storage.write_bytes(storage.join(self.out, SAMPLES, f"{name}.npz"), kept)
        storage.write_json(storage.join(self.out, directory, f"{name}.json"), rows)
        return {"errors": sum("error" in row for row in rows)}


def _begin(device: str) -> None:
    """Make a process one that measures."""
    silence_decoders()
    Image.MAX_IMAGE_PIXELS = None  # --max-pixels is the limit of pictures, and of the other codecs' files with them
    keep_to_one_core(device)


def try_coding(coder: Coder, place: Place, system: System) -> Tried:
    """Read a picture and send it through a system; what cannot be done is said in one line."""
    machine = machine_of(system, coder.device)
    try:
        original = _read(place, coder.config.max_pixels)
        coded = list(coder.code(original, system, place.key))
    except (UsageError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()
        return Tried(None, [], machine, reason[0] if reason else type(error).__name__)
    return Tried(original, coded, machine)


def _read(place: Place, max_pixels: int) -> Picture:
    found = units.read_picture(place.unit, place.key)
    if found is None or found.data is None:
        raise ImageError(found.error if found else "it is no longer there")
    return open_image(found.data, max_pixels).pixels


def table_row(original: Picture, coded: Coded, networks: Networks) -> dict[str, Any]:
    """Measure one point of one picture."""
    height, width = original.shape[:2]
    megapixels = height * width / 1e6
    seconds = (coded.encode_s, coded.decode_s)
    peaks = (coded.encode_peak_bytes, coded.decode_peak_bytes)
    return {
        "quality": coded.quality, "fidelity": coded.fidelity, "steps": coded.steps, "usual_steps": coded.usual_steps,
        "decoding": coded.decoding, "bytes": coded.bytes, "bpp": metrics.bits_per_pixel(coded.bytes, height, width),
        **metrics.quality(original, coded.picture, networks),
        **{name: None if s is None else s / megapixels for name, s in zip(SECONDS, seconds, strict=True)},
        **{name: None if peak is None else peak / 2**20 for name, peak in zip(PEAKS, peaks, strict=True)},
    }  # fmt: skip


def samples(original: Picture, coded: Sequence[Coded], number: int, pictures: int, networks: Networks) -> bytes:
    """Keep of a picture and of each of its points what the metrics of sets need, as the bytes of an .npz file."""
    kept: dict[str, Any] = {}
    every = {ORIGINAL: original} | {str(i): c.picture for i, c in enumerate(coded) if c.usual_steps}
    for point, picture in every.items():
        for name, sampling in SAMPLINGS.items():
            for i, array in enumerate(sampling(picture, number, pictures, networks)):
                kept[f"{point}/{name}/{i}"] = array
    buffer = io.BytesIO()
    np.savez(buffer, **kept)
    return buffer.getvalue()


ORIGINAL = "original"
"""What the original is called among the points of a picture."""


def read_samples(data: bytes, point: str, sampling: str) -> metrics.Sample:
    """Take what is kept of one point."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        prefix = f"{point}/{sampling}/"
        names = sorted((n for n in arrays.files if n.startswith(prefix)), key=lambda n: int(n.removeprefix(prefix)))
        return [arrays[name] for name in names]


def machine_of(system: System, device: str) -> str:
    """The name of what does a system's work."""
    if system.kind == "reconstructions":
        return "elsewhere"
    if system.ours and device == "cuda":
        return torch.cuda.get_device_name()
    return f"{'any cores' if system.kind == 'command' else 'one core'} of {_processor()}"


@functools.cache
def _processor() -> str:
    models = re.findall(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return str(models[0]) if models else platform.machine()
