"""One picture through one system: what comes back at each point of its curve, and what that took."""

from __future__ import annotations

import contextlib
import functools
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.picture import Picture
from pipelines.evaluate import anchors, commands, compressai_models, reconstructions
from pipelines.evaluate.coded import Coded
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.systems import System
from pipelines.runtime.stages import codec_in_actor

T = TypeVar("T")

FIRST_RUN_SIDE = 256
"""Of the part of a picture on which a CPU's first run is; a GPU's is on all of it, whose shape it plans for."""


class Coder:
    """Whatever codes in one process: codecs that are loaded once, and a first run of each that does not count."""

    def __init__(self, config: EvaluateConfig, device: str) -> None:
        self.config, self.device = config, device
        self.codecs: dict[str, CorrDiffCodec] = {}
        self.ran: set[tuple[str, tuple[int, ...]]] = set()

    def code(self, original: Picture, system: System, key: str) -> Iterator[Coded]:
        """Give a picture at every point of a system's curve, in the order of its files.

        Raises:
            OSError: the system could not; a sentence. An encoder or decoder of ours may raise what torch raises.
            JobError: the codec is another one than when the evaluation began.
        """
        self._run_first(original, system)
        if system.kind == "codec":
            codec = self._codec(system)
            for settings in self.config.settings():
                yield from through_codec(codec, original, settings, self.config.decodes_both(settings))
        elif system.kind == "anchor":
            for quality in anchors.ANCHORS[system.source].qualities:
                yield through_anchor(system.source, original, quality)
        elif system.kind == "command":
            command = commands.parse(system.source)
            for point in system.points:
                yield commands.code(command, original, point, self.config.command_limit_s)
        elif system.kind == "reconstructions":
            for point in system.points:
                yield reconstructions.code(system.source, key, point, original)
        else:
            for point in system.points:
                yield compressai_models.code(system.source, original, point, self.config.weights)

    def _run_first(self, original: Picture, system: System) -> None:
        """Let a system do once what it does in its first run alone, before anything is timed.

        Libraries are loaded, code is compiled, a GPU chooses its kernels for a shape.
        """
        on_gpu = system.ours and self.device == "cuda"
        known = (system.name, original.shape if on_gpu else ())
        if known in self.ran:
            return
        self.ran.add(known)
        part = original if on_gpu else original[:FIRST_RUN_SIDE, :FIRST_RUN_SIDE].copy()
        if system.kind == "codec":
            for _ in through_codec(self._codec(system), part, self.config.settings()[0], both=False):
                pass
        elif system.kind == "anchor":
            through_anchor(system.source, part, anchors.ANCHORS[system.source].qualities[0])
        elif system.kind == "compressai":
            for point in system.points:
                compressai_models.code(system.source, part, point, self.config.weights)

    def _codec(self, system: System) -> CorrDiffCodec:
        uri = system.source
        if uri not in self.codecs:
            self.codecs[uri] = codec_in_actor(uri, self.device, self.config.precision, system.fingerprint)
        return self.codecs[uri]


def through_anchor(name: str, original: Picture, quality: float) -> Coded:
    """Send a picture through an anchor. Raises `OSError` where its library refuses."""
    file = _timed(functools.partial(anchors.encode, name, original, quality), "cpu")
    shown = _timed(functools.partial(anchors.decode, name, file.result), "cpu")
    return Coded(
        shown.result, len(file.result), quality, encode_s=file.seconds, decode_s=shown.seconds,
        encode_peak_bytes=file.peak_bytes, decode_peak_bytes=shown.peak_bytes,
    )  # fmt: skip


def through_codec(codec: CorrDiffCodec, original: Picture, settings: Settings, both: bool) -> Iterator[Coded]:
    """Give a file of some settings, decoded as it is meant, and where `both`, by D alone and without the correction."""
    device = codec.device.type
    file = _timed(lambda: codec.compress_batch([original], settings)[0].data, device)
    steps = codec.config.diffusion.steps if settings.steps is None else settings.steps
    for decoding in ("corrected", "privileged", "uncorrected") if both else ("corrected",):
        shown = _timed(functools.partial(codec.decompress, file.result, decoding, original.size), device)
        yield Coded(
            shown.result, len(file.result), settings.quality, settings.fidelity, steps,
            settings.steps is None, decoding, file.seconds, shown.seconds, file.peak_bytes, shown.peak_bytes,
        )  # fmt: skip


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
