"""The second stage of a compression: the networks and the factors, a few pictures at a time; symbols come out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

from corrdiff import coding
from corrdiff.coding import Pending
from corrdiff.picture import Picture
from pipelines.compress.chunk import Chunk, Opened, WithSymbols
from pipelines.compress.config import CompressConfig
from pipelines.compress.rate import Rate, qualities
from pipelines.runtime.stages import as_many_as_fit, codec_in_actor


class Encoder:
    """A Ray Data actor: the networks on one GPU or one core."""

    def __init__(
        self, codec: str, config: CompressConfig, device: str, rate: Rate | None = None, fingerprint: str = ""
    ) -> None:
        self.config, self.rate = config, rate
        self.codec = codec_in_actor(codec, device, config.precision, fingerprint)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk: Chunk[Opened] = row["chunk"]
        started = time.perf_counter()
        encoded = [e for alike in self._batches(chunk.pictures) for e in self._encode(alike)]
        return {"chunk": chunk.after("encode", encoded, started)}

    def _batches(self, pictures: list[Opened]) -> Iterator[list[Opened]]:
        """Runs of one size, a few at a time."""
        for _, run in itertools.groupby(pictures, lambda p: p.pixels.shape if p.pixels is not None else None):
            while batch := list(itertools.islice(run, self.config.batch)):
                yield batch

    def _encode(self, batch: list[Opened]) -> list[WithSymbols]:
        if batch[0].pixels is None:
            return [WithSymbols(p, None, None, "", p.error) for p in batch]
        return as_many_as_fit(
            self._encode_together, batch,
            lambda p, reason: WithSymbols(p, None, None, "", f"too large for the memory: {reason}"),
        )  # fmt: skip

    def _encode_together(self, batch: list[Opened]) -> list[WithSymbols]:
        images = [p.pixels for p in batch if p.pixels is not None]
        settings = self.config.settings()
        levels = latents = None
        if self.rate:
            latents = self.codec.latents(images, settings)
            levels = qualities(self.codec, images, latents, settings, self.rate)
        pending = self.codec.encode_batch(images, settings, levels, latents)
        checked = [self.config.verifies_pixels(p.key) for p in batch]
        decoded = iter(self._decode([e for e, c in zip(pending, checked, strict=True) if c]))
        return [
            WithSymbols(p, e, next(decoded) if c else e.reconstruction, "decoded file" if c else "encoder replay")
            for p, e, c in zip(batch, pending, checked, strict=True)
        ]

    def _decode(self, pending: list[Pending]) -> list[Picture]:
        if not pending:
            return []
        files = [coding.write(e, self.codec.tables) for e in pending]
        return self.codec.decompress_batch(files, max_pixels=self.config.max_pixels)
