"""The file format, versions 1 and 2 (see docs/bitstream.md): a header, the streams of each tile, a checksum.

All numbers are little-endian; a varint is LEB128, shortest form. Reading checks, in this order and before anything
that depends on the content is allocated: magic, version, flags, checksum, fingerprint (when given), fields, dimensions.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from corrdiff.config import (
    GRID_UNIT,
    HYPER_STRIDE,
    MAX_FACTOR_BITS,
    MAX_PLANES,
    MAX_STEPS,
    QUALITIES,
    QUALITY_PARTS,
    is_tile,
)
from corrdiff.errors import UsageError

MAGIC = b"CRDF"
VERSIONS = 1, 2
FIXED_BYTES_MAX = 32
MAX_PIXELS = 1 << 28
"""Pictures beyond this (268 megapixels) are refused unless the caller raises the limit."""

_CRC_BYTES = 4
_MIN_BYTES = 4 + 1 + 1 + 8 + 1 + 1 + 1 + 1 + 1 + _CRC_BYTES
_PLANES_SHIFT = 4
"""Version 2 has bits and planes of the factors in one byte."""


class BitstreamError(UsageError):
    """The bytes are no readable picture; the message says which check failed and what to do."""


@dataclass(frozen=True)
class Header:
    """What the decoder must know before the streams."""

    fingerprint: bytes
    """First 8 bytes of the codec's SHA-256."""
    width: int
    height: int
    quality: float
    """From 0 to 7: whole numbers in version 1, sixteenths in version 2."""
    steps: int
    """In version 2 it may be 0: then there are no factors, and what is said of them here is 0."""
    grid: int
    """Side of a factor cell in pixels, 0 for one cell."""
    factor_bits: int
    tile: int = 0
    """Tile side in pixels, 0 for an untiled picture."""
    planes: int = 2
    """Factors of a cell in a step."""
    version: int = 1


class Streams(NamedTuple):
    """The three coded parts of a tile."""

    factors: bytes
    """Empty, and not in the file, where there are no steps."""
    z: bytes
    y: bytes


class Bitstream(NamedTuple):
    """A file that was read."""

    header: Header
    tiles: list[Streams]
    """The tiles' streams, row by row; those of one tile for an untiled picture."""


def pack(header: Header, tiles: list[Streams]) -> bytes:
    """Put header and streams together to the bytes of a file."""
    out = bytearray(MAGIC)
    out += struct.pack("<BB8s", header.version, 0, header.fingerprint)
    out += _varint(header.width) + _varint(header.height)
    grid, side = header.grid // GRID_UNIT, header.tile // HYPER_STRIDE
    if header.version == 1:
        assert header.quality % 1 == 0
        assert header.planes == MAX_PLANES
        out += bytes([int(header.quality), header.steps, grid, header.factor_bits, side])
    else:
        out += bytes([int(header.quality * QUALITY_PARTS), header.steps, side])
        out += bytes([grid, header.factor_bits | header.planes << _PLANES_SHIFT] if header.steps else [])
    assert len(out) + _CRC_BYTES <= FIXED_BYTES_MAX
    for tile in tiles:
        for stream in tile if header.steps else tile[1:]:
            out += _varint(len(stream)) + stream
    out += struct.pack("<I", zlib.crc32(out))
    return bytes(out)


def unpack(data: bytes, fingerprint: bytes | None = None, max_pixels: int = MAX_PIXELS) -> Bitstream:
    """Take the bytes of a file apart into header and streams.

    Args:
        data: the whole file.
        fingerprint: the codec at hand; a file that another codec wrote is refused. None reads any.
        max_pixels: largest width * height that is accepted.

    Raises:
        BitstreamError: for anything that is not exactly a file of a version that is known.
    """
    if data[:4] != MAGIC:
        raise BitstreamError("not a corrdiff picture (its first four bytes are not 'CRDF')")
    if len(data) < _MIN_BYTES:
        raise BitstreamError(f"truncated: {len(data)} bytes are less than a header; fetch the file again")
    version, flags, found = struct.unpack_from("<BB8s", data, 4)
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise BitstreamError(
            f"format version {version} is unknown, this program reads {known}; install a newer corrdiff"
        )
    if flags != 0:
        raise BitstreamError(f"unknown flags 0x{flags:02x}; install a newer corrdiff")
    if zlib.crc32(data[:-_CRC_BYTES]) != struct.unpack("<I", data[-_CRC_BYTES:])[0]:
        raise BitstreamError("checksum mismatch: the file is damaged or truncated; fetch it again")
    if fingerprint is not None and found != fingerprint:
        raise BitstreamError(
            f"the file was written by codec {found.hex()}, but the codec given is {fingerprint.hex()}; "
            "decode it with the codec that wrote it"
        )
    reader = _Reader(data, 14, len(data) - _CRC_BYTES)
    header = _read_header(reader, version, found)
    _check(header, max_pixels)
    side = header.tile
    count = -(-header.width // side) * -(-header.height // side) if side else 1
    tiles = [Streams(reader.block() if header.steps else b"", reader.block(), reader.block()) for _ in range(count)]
    reader.expect_end()
    return Bitstream(header, tiles)


def _read_header(reader: _Reader, version: int, fingerprint: bytes) -> Header:
    width, height, quality, steps = reader.varint(), reader.varint(), reader.byte(), reader.byte()
    if version == 1:
        grid, bits, tile = reader.byte() * GRID_UNIT, reader.byte(), reader.byte() * HYPER_STRIDE
        return Header(fingerprint, width, height, quality, steps, grid, bits, tile)
    tile = reader.byte() * HYPER_STRIDE
    grid, factor = (reader.byte() * GRID_UNIT, reader.byte()) if steps else (0, 0)
    planes, bits = divmod(factor, 1 << _PLANES_SHIFT)
    return Header(fingerprint, width, height, quality / QUALITY_PARTS, steps, grid, bits, tile, planes, version)


def _check(header: Header, max_pixels: int) -> None:
    width, height = header.width, header.height
    if not (0 < width < 1 << 24 and 0 < height < 1 << 24):
        raise BitstreamError(f"dimensions {width}x{height} are not those of a picture")
    if width * height > max_pixels:
        raise BitstreamError(
            f"{width}x{height} is more than the limit of {max_pixels} pixels; raise the limit if you trust the file"
        )
    quality, steps, grid, bits, tile = header.quality, header.steps, header.grid, header.factor_bits, header.tile
    factors = 1 <= steps <= MAX_STEPS and 1 <= bits <= MAX_FACTOR_BITS and 1 <= header.planes <= MAX_PLANES
    no_factors = header.version > 1 and steps == 0
    if quality > QUALITIES - 1 or not (factors or no_factors) or not is_tile(tile):
        raise BitstreamError(
            f"a header field is out of range: quality {quality:g}, steps {steps}, grid {grid}, bits {bits}, "
            f"planes {header.planes}, tile {tile}"
        )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class _Reader:
    """Bounds-checked reading of data[position:end]."""

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self.data, self.position, self.end = data, position, end

    def byte(self) -> int:
        if self.position >= self.end:
            raise BitstreamError("the file ends inside a field")
        self.position += 1
        return self.data[self.position - 1]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift > 0:
                    raise BitstreamError("a number is not in its shortest form")
                return value
        raise BitstreamError("a number is too long")

    def block(self) -> bytes:
        length = self.varint()
        if length > self.end - self.position:
            raise BitstreamError("a stream is longer than the file")
        self.position += length
        return self.data[self.position - length : self.position]

    def expect_end(self) -> None:
        if self.position != self.end:
            raise BitstreamError(f"{self.end - self.position} bytes follow the last stream")
