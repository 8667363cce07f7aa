"""The stages through which a dataset is compressed, each for the machine that it fits; batch_compress.py joins them.

    read    CPU          a unit's pictures, opened, in chunks of like size (opening.py)
    encode  GPU or CPU   the networks and the factors, a few pictures at a time; symbols and factors come out
    code    CPU          symbols to a file, the file read back to the same latents, quality
    write   I/O          a unit whose pictures have all come: its part, and then its record (parts.py)

Chunks pass from stage to stage through Ray's object store, which holds them back where a later stage is slower: memory
does not grow with the dataset, and a GPU has its next pictures ready before it is done with the last.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from corrdiff import coding, metrics, perceptual
from corrdiff.codec_directory import load_codec, load_networks
from corrdiff.coding import Pending
from corrdiff.format.bitstream import BitstreamError
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.picture import Picture
from pipelines.compress import rate_target as target
from pipelines.compress.config import CompressConfig
from pipelines.compress.rate_target import Rate
from pipelines.compress.read import Chunk, Opened
from pipelines.compress.write import Done
from pipelines.dataset.format import COLUMNS

STAGES = ("read", "encode", "code", "write")


class Encoded(NamedTuple):
    """A picture that the networks are done with."""

    opened: Opened
    pending: Pending | None
    shown: Picture | None
    """What the decoder will show."""
    quality_source: str
    error: str = ""


# --- encode


class Encoder:
    """A Ray Data actor: the networks on one GPU or one core."""

    def __init__(self, codec: str, config: CompressConfig, device: str, rate: Rate | None = None) -> None:
        if device == "cpu":
            torch.set_num_threads(1)  # an actor for each core
        self.config, self.rate = config, rate
        self.codec = load_codec(codec, device, config.precision)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk: Chunk = row["chunk"]
        started = time.perf_counter()
        encoded = [e for alike in self._batches(chunk.pictures) for e in self._encode(alike)]
        return {"chunk": chunk._replace(pictures=encoded, seconds=_spent(chunk, "encode", started))}

    def _batches(self, pictures: list[Opened]) -> Iterator[list[Opened]]:
        """Runs of one size, a few at a time."""
        for _, run in itertools.groupby(pictures, lambda p: p.pixels.shape if p.pixels is not None else None):
            while batch := list(itertools.islice(run, self.config.batch)):
                yield batch

    def _encode(self, batch: list[Opened]) -> list[Encoded]:
        images = [p.pixels for p in batch if p.pixels is not None]
        if not images:
            return [Encoded(p, None, None, "", p.error) for p in batch]
        settings = self.config.settings()
        try:
            levels = latents = None
            if self.rate:
                latents = self.codec.latents(images, settings)
                levels = target.qualities(self.codec, images, latents, settings, self.rate)
            pending = self.codec.encode_batch(images, settings, levels, latents)
            checked = [self.config.verifies_pixels(p.key) for p in batch]
            decoded = iter(self._decode([e for e, c in zip(pending, checked, strict=True) if c]))
        except (MemoryError, torch.OutOfMemoryError) as error:
            if len(batch) > 1:
                return [e for p in batch for e in self._encode([p])]
            return [
                Encoded(p, None, None, "", f"too large for the memory: {str(error).splitlines()[0]}") for p in batch
            ]
        return [
            Encoded(p, e, next(decoded), "decoded file") if c else Encoded(p, e, e.reconstruction, "encoder replay")
            for p, e, c in zip(batch, pending, checked, strict=True)
        ]

    def _decode(self, pending: list[Pending]) -> list[Picture]:
        if not pending:
            return []
        files = [coding.write(e, self.codec.tables) for e in pending]
        return self.codec.decompress_batch(files, max_pixels=self.config.max_pixels)


def _spent(chunk: Chunk, stage: str, started: float) -> dict[str, float]:
    return {**chunk.seconds, stage: time.perf_counter() - started}


# --- code


class Coder:
    """A Ray Data actor: symbols -> files, each read back before it counts; the table's rows."""

    def __init__(self, codec: str, lpips_weights: str | None) -> None:
        torch.set_num_threads(1)
        self.tables = load_networks(codec, for_training=False)[1]
        weights = perceptual.lpips_weights(lpips_weights)
        self.lpips = perceptual.load_lpips(weights) if weights else None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk: Chunk = row["chunk"]
        started = time.perf_counter()
        done = [_code(encoded, self.tables, self.lpips) for encoded in chunk.pictures]
        return {"chunk": chunk._replace(pictures=done, seconds=_spent(chunk, "code", started))}


def _code(encoded: Encoded, tables: EntropyTables, lpips: Any) -> Done:
    opened = encoded.opened
    if opened.pixels is None or encoded.pending is None or encoded.shown is None:
        return _failed(opened, encoded.error)
    data = coding.write(encoded.pending, tables)
    try:
        coding.verify(data, encoded.pending, tables)
    except BitstreamError as error:
        return _failed(opened, f"verification: {error}")
    height, width = opened.pixels.shape[:2]
    row = {
        "key": opened.key, "source": opened.source, "width": width, "height": height, "bytes": len(data),
        "bpp": metrics.bits_per_pixel(len(data), height, width),
        **metrics.quality(opened.pixels, encoded.shown, lpips, metrics.DATASET_METRICS),
        "quality": encoded.pending.header.quality, "quality_source": encoded.quality_source,
        "status": "ok", "error": None,
    }  # fmt: skip
    return Done(opened.place, row, data, opened.changes)


def _failed(opened: Opened, reason: str) -> Done:
    row = dict.fromkeys(COLUMNS.names)
    return Done(
        opened.place, {**row, "key": opened.key, "source": opened.source, "status": "failed", "error": reason}, None
    )
