"""A second reader of .crdf files, slow and plain, written from docs/bitstream.md: from bytes to factors and y_hat.

It shares no code with the package, so that the documentation is what both are held to.
"""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy


class Table(NamedTuple):
    cumulative: list[int]
    offset: int


class Tile(NamedTuple):
    factors: npt.NDArray[np.float64]
    """[S, 2, R, C]."""
    y_hat: npt.NDArray[np.float64]
    """[M, h, w]."""


def read_symbols(data: bytes, tables: list[Table]) -> list[int]:
    """One symbol for each table."""
    data = bytes(-len(data) % 4) + data
    words = [int.from_bytes(data[i : i + 4], "big") for i in range(0, len(data), 4)][::-1]
    state = 0
    for _ in range(min(2, len(words))):
        state = state << 32 | words.pop()

    def read(cumulative: list[int]) -> int:
        nonlocal state
        quantile = state % 65536
        low, high = 0, len(cumulative) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cumulative[middle] <= quantile else (low, middle)
        state = (state >> 16) * (cumulative[low + 1] - cumulative[low]) + quantile - cumulative[low]
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
        return low

    raw = list(range(0, 65537, 2))
    symbols = []
    for table in tables:
        entry = read(table.cumulative)
        escaped = entry == len(table.cumulative) - 2
        symbols.append(read(raw) - 16384 if escaped else entry + table.offset)
    assert state == 0
    assert not words
    return symbols


def read_file(data: bytes, codec: Path) -> tuple[dict[str, Any], list[Tile]]:
    """Header fields and tiles of a file, given its codec directory."""
    assert data[:6] == b"CRDF\x01\x00"
    assert zlib.crc32(data[:-4]) == struct.unpack("<I", data[-4:])[0]
    config = json.loads((codec / "config.json").read_text())
    assert config["fingerprint"].startswith(data[6:14].hex())
    position = 14

    def byte() -> int:
        nonlocal position
        position += 1
        return data[position - 1]

    def varint() -> int:
        value, shift = 0, 0
        while True:
            part = byte()
            value |= (part & 127) << shift
            shift += 7
            if part < 128:
                return value

    def stream() -> bytes:
        nonlocal position
        length = varint()
        position += length
        return data[position - length : position]

    width, height = varint(), varint()
    quality, steps, grid, bits, side = byte(), byte(), 16 * byte(), byte(), 64 * byte()
    header = {
        "width": width, "height": height, "quality": quality, "steps": steps, "grid": grid, "factor_bits": bits,
        "tile": side,
    }  # fmt: skip
    tensors = safetensors.numpy.load_file(codec / "tables.safetensors")
    tiles = []
    for top in range(0, height, side or height):
        for left in range(0, width, side or width):
            size = (min(side or height, height - top), min(side or width, width - left))
            factors, z, y = stream(), stream(), stream()
            tiles.append(Tile(read_factors(factors, size, header), read_latent(z, y, size, tensors)))
    assert position == len(data) - 4
    return header, tiles


def read_factors(data: bytes, size: tuple[int, int], header: dict[str, Any]) -> npt.NDArray[np.float64]:
    n = 1 << header["factor_bits"]
    tables = []
    for k in (0, 1, 2, 3, 4, 5, 6, 8):
        weights = [(k ** min(r, n - r) << 20) // 8 ** min(r, n - r) for r in range(n)]
        frequencies = [1 + w * (65535 - n) // sum(weights) for w in weights]
        frequencies[0] += 65535 - sum(frequencies)
        tables.append(Table(np.cumsum([0, *frequencies, 1]).tolist(), 0))
    cell = header["grid"]
    rows, columns = (-(-s // cell) if cell else 1 for s in size)
    planes = [tables[data[0] & 15], tables[data[0] >> 4]]
    order = [planes[p] for _ in range(header["steps"]) for p in (0, 1) for _ in range(rows * columns)]
    residuals = np.array(read_symbols(data[1:], order)).reshape(header["steps"], 2, rows, columns)
    levels = np.zeros_like(residuals)
    for s, p, r, c in np.ndindex(*levels.shape):
        if s:
            predicted = levels[s - 1, p, r, c]
        elif c:
            predicted = levels[s, p, r, c - 1]
        else:
            predicted = levels[s, p, r - 1, c] if r else n // 2
        levels[s, p, r, c] = (predicted + residuals[s, p, r, c]) % n
    low, high = levels[:, :1] / (n - 1), 1.25 * levels[:, 1:] / (n - 1) - 0.25
    return np.concatenate([low, high], axis=1)


def read_latent(z: bytes, y: bytes, size: tuple[int, int], tensors: dict[str, Any]) -> npt.NDArray[np.float64]:
    tables = {
        name: [
            Table(row[:length].tolist(), int(offset))
            for row, length, offset in zip(*(tensors[f"{name}.{p}"] for p in ("cdf", "length", "offset")), strict=True)
        ]
        for name in ("z", "y")
    }
    rows, columns = (-(-s // 64) for s in size)
    order = [table for table in tables["z"] for _ in range(rows * columns)]
    h = np.array(read_symbols(z, order), dtype=object).reshape(len(tables["z"]), rows, columns)
    for k, places in enumerate((8, 8, 6)):
        h = _convolve(h, tensors, k, places)
        if k < 2:
            c, height, width = h.shape
            h = h.reshape(c // 4, 2, 2, height, width).transpose(0, 3, 1, 4, 2).reshape(c // 4, 2 * height, 2 * width)
            h = np.clip(h, 0, 1 << 20)
    m, index = h[: len(h) // 2], h[len(h) // 2 :]
    m = np.clip(m, -16383 << 6, 16383 << 6)
    index = np.clip((index + 32) // 64, 0, 63)
    symbols = np.array(read_symbols(y, [tables["y"][i] for i in index.ravel()])).reshape(m.shape)
    return symbols + m.astype(np.float64) / 64


def _convolve(h: npt.NDArray[Any], tensors: dict[str, Any], k: int, places: int) -> npt.NDArray[Any]:
    """In Python's own whole numbers, which have no limit."""
    weight, bias = tensors[f"h_s.{k}.weight"].astype(object), tensors[f"h_s.{k}.bias"].astype(object)
    shift = int(tensors[f"h_s.{k}.fraction_bits"]) - places
    _, height, width = h.shape
    padded = np.pad(h, ((0, 0), (1, 1), (1, 1)), constant_values=0)
    total = bias[:, None, None] + np.zeros((1, height, width), dtype=object)
    for i in range(3):
        for j in range(3):
            total = total + np.tensordot(weight[:, :, i, j], padded[:, i : i + height, j : j + width], axes=1)
    return (2 * total + (1 << shift)) >> (shift + 1)
