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
    """[S, P, R, C]."""
    y_hat: npt.NDArray[np.float64]
    """[M, h, w]."""


class Stream:
    """A stream that is read a few symbols at a time."""

    def __init__(self, data: bytes) -> None:
        data = bytes(-len(data) % 4) + data
        self.words = [int.from_bytes(data[i : i + 4], "big") for i in range(0, len(data), 4)][::-1]
        self.state = 0
        for _ in range(min(2, len(self.words))):
            self.state = self.state << 32 | self.words.pop()

    def read(self, tables: list[Table]) -> list[int]:
        """One symbol for each table."""
        symbols = []
        for table in tables:
            entry = self._entry(table.cumulative)
            escaped = entry == len(table.cumulative) - 2
            symbols.append(self._entry(RAW) - 16384 if escaped else entry + table.offset)
        return symbols

    def end(self) -> None:
        assert self.state == 0
        assert not self.words

    def _entry(self, cumulative: list[int]) -> int:
        quantile = self.state % 65536
        low, high = 0, len(cumulative) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cumulative[middle] <= quantile else (low, middle)
        self.state = (self.state >> 16) * (cumulative[low + 1] - cumulative[low]) + quantile - cumulative[low]
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return low


RAW = list(range(0, 65537, 2))


def read_symbols(data: bytes, tables: list[Table]) -> list[int]:
    """One symbol for each table, which are all of the stream's."""
    stream = Stream(data)
    symbols = stream.read(tables)
    stream.end()
    return symbols


def read_file(data: bytes, codec: Path) -> tuple[dict[str, Any], list[Tile]]:
    """Header fields and tiles of a file, given its codec directory."""
    version = data[4]
    assert data[:6] in (b"CRDF\x01\x00", b"CRDF\x02\x00")
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
    if version == 1:
        sixteenths, steps, grid, bits, side, planes = 16 * byte(), byte(), 16 * byte(), byte(), 64 * byte(), 2
    else:
        sixteenths, steps, side = byte(), byte(), 64 * byte()
        grid, factor = (16 * byte(), byte()) if steps else (0, 0)
        bits, planes = factor & 15, factor >> 4
    header = {
        "width": width, "height": height, "quality": sixteenths / 16, "steps": steps, "grid": grid, "factor_bits": bits,
        "tile": side, "planes": planes,
    }  # fmt: skip
    tensors = safetensors.numpy.load_file(codec / "tables.safetensors")
    tiles = []
    for top in range(0, height, side or height):
        for left in range(0, width, side or width):
            size = (min(side or height, height - top), min(side or width, width - left))
            factors = read_factors(stream(), size, header) if steps else np.empty((0, 0, 1, 1))
            z, y = stream(), stream()
            tiles.append(Tile(factors, read_latent(z, y, size, tensors, sixteenths)))
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
    steps, planes = header["steps"], header["planes"]
    assert planes == 2 or data[0] < 16
    of_plane = [tables[data[0] & 15], tables[data[0] >> 4]][:planes]
    order = [of_plane[p] for _ in range(steps) for p in range(planes) for _ in range(rows * columns)]
    residuals = np.array(read_symbols(data[1:], order)).reshape(steps, planes, rows, columns)
    levels = np.zeros_like(residuals)
    for s, p, r, c in np.ndindex(*levels.shape):
        if s:
            predicted = levels[s - 1, p, r, c]
        elif c:
            predicted = levels[s, p, r, c - 1]
        else:
            predicted = levels[s, p, r - 1, c] if r else n // 2
        levels[s, p, r, c] = (predicted + residuals[s, p, r, c]) % n
    low, high = levels[:, :1] / (n - 1), 1.25 * levels[:, 1:] / (n - 1) - 0.25  # high is empty for one plane
    return np.concatenate([low, high], axis=1)


def read_latent(
    z: bytes, y: bytes, size: tuple[int, int], tensors: dict[str, Any], sixteenths: int
) -> npt.NDArray[np.float64]:
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
    for k in range(2):
        h = _convolve(h, tensors, f"h_s.{k}", 8)
        c, height, width = h.shape
        h = h.reshape(c // 4, 2, 2, height, width).transpose(0, 3, 1, 4, 2).reshape(c // 4, 2 * height, 2 * width)
        h = np.clip(h, 0, 1 << 20)
    if "y.slices" in tensors:
        return _read_slices(y, h, tables["y"], tensors, sixteenths, size)
    h = _convolve(h, tensors, "h_s.2", 6)
    m, index = h[: len(h) // 2], h[len(h) // 2 :]
    m = np.clip(m, -16383 << 6, 16383 << 6)
    index = np.clip((index + 32) // 64, 0, 63)
    symbols = np.array(read_symbols(y, [tables["y"][i] for i in index.ravel()])).reshape(m.shape)
    return symbols + m.astype(np.float64) / 64


def _read_slices(
    y: bytes, h: npt.NDArray[Any], tables: list[Table], tensors: dict[str, Any], sixteenths: int, size: tuple[int, int]
) -> npt.NDArray[np.float64]:
    """Slice by slice, and of each the dark squares first; what is decoded counts 64ths."""
    seen = np.clip(_convolve(h, tensors, "h_s.2", 8), 0, 1 << 20)
    _, whole_height, whole_width = seen.shape
    height, width = (min(-(-(side + 8) // 16), 4 * -(-side // 64)) for side in size)
    seen = seen[:, :height, :width]
    dark = np.add.outer(np.arange(height), np.arange(width)) % 2 == 0
    bias = tensors["y.scale_bias"].astype(object)
    level, part = divmod(sixteenths, 16)
    bias_16 = (16 - part) * bias[level] + (part * bias[level + 1] if part else 0)
    stream, decoded, first = Stream(y), [], 0
    for k, channels in enumerate(tensors["y.slices"].tolist()):
        of_slice = np.zeros((channels, height, width), dtype=object)
        for half, here in enumerate((dark, ~dark)):
            x = np.concatenate([seen, _context(of_slice)]) if half else seen
            x = np.clip(_convolve(x, tensors, f"context.{k}.{half}.hidden", 8), 0, 1 << 20)
            x = _convolve(x, tensors, f"context.{k}.{half}.out", 6)
            m = np.clip(x[:channels], -16383 << 6, 16383 << 6)[:, here]
            index_16 = 16 * x[channels:][:, here] + bias_16[first : first + channels, None]
            index = np.clip((index_16 + 512) // 1024, 0, 63)
            symbols = stream.read([tables[i] for i in index.ravel()])
            of_slice[:, here] = 64 * np.array(symbols, dtype=object).reshape(m.shape) + m
        seen = np.concatenate([seen, _context(of_slice)])
        decoded.append(of_slice)
        first += channels
    stream.end()
    beyond = (0, 0), (0, whole_height - height), (0, whole_width - width)
    return np.pad(np.concatenate(decoded).astype(np.float64) / 64, beyond)


def _context(of_slice: npt.NDArray[Any]) -> npt.NDArray[Any]:
    near = np.clip(of_slice, -512, 512)
    return np.concatenate([near, abs(near)])


def _convolve(h: npt.NDArray[Any], tensors: dict[str, Any], name: str, places: int) -> npt.NDArray[Any]:
    """In Python's own whole numbers, which have no limit."""
    weight, bias = tensors[f"{name}.weight"].astype(object), tensors[f"{name}.bias"].astype(object)
    shift = int(tensors[f"{name}.fraction_bits"]) - places
    _, height, width = h.shape
    side = weight.shape[2]
    edge = side // 2
    padded = np.pad(h, ((0, 0), (edge, edge), (edge, edge)), constant_values=0)
    total = bias[:, None, None] + np.zeros((1, height, width), dtype=object)
    for i in range(side):
        for j in range(side):
            total = total + np.tensordot(weight[:, :, i, j], padded[:, i : i + height, j : j + width], axes=1)
    return (2 * total + (1 << shift)) >> (shift + 1)
