"""The third stage of a compression: symbols -> a file, which is read back to the same latents, and its quality."""

from __future__ import annotations

import time
from typing import Any

import torch

from corrdiff import coding, metrics, perceptual
from corrdiff.codec_directory import load_networks
from corrdiff.format.bitstream import BitstreamError
from corrdiff.format.entropy_tables import EntropyTables
from pipelines.compress.chunk import Chunk, Done, Opened, WithSymbols
from pipelines.dataset.format import columns
from pipelines.runtime.stages import check_pinned


class Coder:
    """A Ray Data actor: symbols -> files, each read back before it counts; the table's rows."""

    def __init__(self, codec: str, lpips_weights: str | None, fingerprint: str = "") -> None:
        torch.set_num_threads(1)
        _, self.tables, found = load_networks(codec, for_training=False)
        check_pinned(codec, found, fingerprint)
        weights = perceptual.lpips_weights(lpips_weights)
        self.networks = {metrics.LPIPS.name: perceptual.load_lpips(weights)} if weights else {}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk: Chunk[WithSymbols] = row["chunk"]
        started = time.perf_counter()
        return {"chunk": chunk.after("code", [_code(e, self.tables, self.networks) for e in chunk.pictures], started)}


def _code(encoded: WithSymbols, tables: EntropyTables, networks: metrics.Networks) -> Done:
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
        **metrics.quality(opened.pixels, encoded.shown, networks, metrics.DATASET_METRICS),
        "quality": encoded.pending.header.quality, "quality_source": encoded.quality_source,
        "status": "ok", "error": None,
    }  # fmt: skip
    return Done(opened.place, row, data, opened.changes, opened.fields)


def _failed(opened: Opened, reason: str) -> Done:
    row: dict[str, Any] = dict.fromkeys(columns().names)
    row |= {"key": opened.key, "source": opened.source, "status": "failed", "error": reason}
    return Done(opened.place, row, None, (), opened.fields)
