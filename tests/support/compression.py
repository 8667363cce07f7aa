"""Chunks of a compression in the state that each stage leaves them, for the tests of the stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from corrdiff.images import save_png
from pipelines.compress.chunk import Chunk, Done, Opened, WithSymbols
from pipelines.compress.code import Coder
from pipelines.compress.config import CompressConfig
from pipelines.compress.encode import Encoder
from pipelines.compress.read import open_unit
from pipelines.dataset.format import columns
from pipelines.inputs.units import Found

Picture = npt.NDArray[np.uint8]
QUICK = CompressConfig(steps=1, precision="fp32")


def found_of(pictures: list[Picture]) -> list[Found]:
    """Pictures as PNGs, with the keys k/0, k/1 and so on."""
    return [Found(f"k/{i}", f"/in/{i}.png", save_png(p)) for i, p in enumerate(pictures)]


def flat(height: int, width: int, count: int) -> list[Picture]:
    """Pictures of one grey each."""
    return [np.full((height, width, 3), i % 256, np.uint8) for i in range(count)]


def open_pictures(pictures: list[Found], batch: int = 4, max_pixels: int = 1 << 28) -> list[Chunk[Opened]]:
    """Unit 5 after "read"."""
    return list(open_unit(5, pictures, batch, max_pixels))


def encode_pictures(pictures: list[Picture], codec: str, config: CompressConfig = QUICK) -> list[Chunk[WithSymbols]]:
    """Unit 5 after "encode"."""
    encoder = Encoder(codec, config, "cpu")
    return [encoder({"chunk": chunk})["chunk"] for chunk in open_pictures(found_of(pictures), config.batch)]


def code_chunks(chunks: list[Chunk[WithSymbols]], codec: str) -> list[Done]:
    """The pictures of some chunks after "code"."""
    coder = Coder(codec, None)
    return [done for chunk in chunks for done in coder({"chunk": chunk})["chunk"].pictures]


def coded(place: int, data: bytes | None, key: str | None = None) -> Done:
    """A picture that is coded, with that file, or a failure."""
    row: dict[str, Any] = dict.fromkeys(columns().names)
    row |= {"key": key or f"k{place}", "source": f"/in/{place}.png", "status": "ok" if data is not None else "failed"}
    if data is not None:
        row |= {"width": 10 + place, "height": 20, "bytes": len(data), "quality": 4}
    else:
        row |= {"error": "why"}
    return Done(place, row, data, ("rotated",) if place == 1 else ())


def chunk_of(unit: int, pictures: list[Done], total: int | None = None, **seconds: float) -> Chunk[Done]:
    """A chunk that comes out of the pipeline."""
    return Chunk(unit, pictures, total, seconds)
