"""Between the networks and the file: a picture that is not coded yet, its coding, and its check.

None of it needs the networks; the tables are enough, so that a cluster does it on other machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrdiff.config import QUALITY_PARTS
from corrdiff.correction import dequantise, expand
from corrdiff.errors import UsageError
from corrdiff.format import bitstream, factor_coding
from corrdiff.format.bitstream import Bitstream, BitstreamError, Header, Streams
from corrdiff.format.entropy_tables import EntropyTables, LatentStreams, Symbols
from corrdiff.picture import Picture
from corrdiff.tiling import Layout, Tile


class Pending(NamedTuple):
    """A picture that the networks are done with."""

    header: Header
    symbols: list[Symbols]
    """The latents of each tile, row by row."""
    reconstruction: Picture
    factors: list[npt.NDArray[np.uint8]]


def write(pending: Pending, tables: EntropyTables) -> bytes:
    """Code a picture to the bytes of a .crdf file."""
    return pack(pending.header, tables.code(pending.symbols), pending.factors)


def verify(data: bytes, pending: Pending, tables: EntropyTables) -> None:
    """Decode a file to its latents and factors and compare them with what was to be coded.

    Raises `BitstreamError` where the file cannot be read or says something else.
    """
    header = pending.header
    parsed = bitstream.unpack(data, header.fingerprint, header.width * header.height)
    if parsed.header != header:
        raise BitstreamError("the file's header is not what was to be written")
    tiles = zip(layout_of(header), pending.symbols, pending.factors, strict=True)
    for tile, symbols, levels in tiles:
        try:
            y_hat_1Mhw = read_latents([parsed], tile, tables)
            found = _factor_levels(header, parsed.tiles[tile.index].factors, levels.shape[2:])
        except ValueError as error:
            raise BitstreamError(f"the file cannot be read back: {error}") from None
        if not np.array_equal(y_hat_1Mhw[0].cpu().numpy(), symbols.y_hat_Mhw):
            raise BitstreamError(f"the latents of tile {tile.index} decode to something else")
        if not np.array_equal(found, levels):
            raise BitstreamError(f"the factors of tile {tile.index} decode to something else")


def pack(header: Header, streams: Sequence[LatentStreams], factors: Sequence[npt.NDArray[np.uint8]]) -> bytes:
    """Put streams and factors of each tile together to the bytes of a .crdf file."""
    bits = header.factor_bits
    coded = [factor_coding.encode_factors(levels, bits) if header.steps else b"" for levels in factors]
    return bitstream.pack(header, [Streams(f, s.z, s.y) for f, s in zip(coded, streams, strict=True)])


def layout_of(header: Header) -> Layout:
    """Say how a file's picture is cut into tiles."""
    return Layout(header.height, header.width, header.tile, header.grid)


def quality_of(headers: Sequence[Header]) -> Tensor:
    """Give the qualities of pictures as the entropy tables count them, in sixteenths, [B]."""
    return torch.tensor([round(header.quality * QUALITY_PARTS) for header in headers])


def batch_key(header: Header) -> tuple[int, ...]:
    """Give that in which files must agree to be decoded together."""
    shape = header.width, header.height, header.tile
    return header.version, *shape, header.steps, header.grid, header.factor_bits, header.planes


def unpack_batch(files: Sequence[bytes], fingerprint: bytes, max_pixels: int) -> list[Bitstream]:
    """Read files that are to be decoded together.

    Raises `BitstreamError` where one cannot be read or is another codec's, `UsageError` where they do not agree.
    """
    if not files:
        raise UsageError("a batch needs at least one file")
    parsed = [bitstream.unpack(data, fingerprint, max_pixels) for data in files]
    if any(batch_key(p.header) != batch_key(parsed[0].header) for p in parsed):
        raise UsageError("the files of a batch must agree in width, height, steps, factor grid and tiles")
    return parsed


def read_latents(parsed: Sequence[Bitstream], tile: Tile, tables: EntropyTables) -> Tensor:
    """Decode y_hat of one tile of each file, [B, M, h, w]. Raises `BitstreamError` where its streams are not valid."""
    streams = [LatentStreams(s.z, s.y) for s in (p.tiles[tile.index] for p in parsed)]
    try:
        return tables.decode(streams, tile.hyper_shape, quality_of([p.header for p in parsed]), tile.touching)
    except ValueError as error:
        raise BitstreamError(f"the coded latents are not valid: {error}") from None


def read_factors(parsed: Bitstream, tile: Tile) -> Tensor:
    """Decode the factors of one tile of a file, [S, P, R, C]. Raises `BitstreamError` where they are not valid."""
    try:
        cells = tile.grid.rows, tile.grid.columns
        levels = _factor_levels(parsed.header, parsed.tiles[tile.index].factors, cells)
    except ValueError as error:
        raise BitstreamError(f"the correction factors are not valid: {error}") from None
    return dequantise(torch.from_numpy(levels), parsed.header.factor_bits)


def made_up(parsed: Bitstream) -> npt.NDArray[np.uint8]:
    """Say where and how much of a picture the score network made up, [H, W]: from 0, D's picture, to 255, none of it.

    It is what the last step's factors leave of the network's estimate, 1 - gamma; of two planes the larger one. Raises
    `BitstreamError` where the factors are not valid.
    """
    header = parsed.header
    share_HW = np.zeros((header.height, header.width), np.uint8)
    for tile in layout_of(header) if header.steps else ():
        g_PRC = read_factors(parsed, tile)[-1]
        g_PHW = expand(g_PRC, tile.grid, tile.grid.height, tile.grid.width)
        share_HW[tile.core] = ((1 - g_PHW.amin(0)).clamp(0, 1) * 255).round().byte().numpy()
    return share_HW


def _factor_levels(header: Header, coded: bytes, cells: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Decode the levels of one tile, [S, P, R, C]. Raises `ValueError` where they are not valid."""
    rows, columns = cells
    shape = header.steps, header.planes, rows, columns
    return factor_coding.decode_factors(coded, shape, header.factor_bits) if header.steps else np.empty(shape, np.uint8)
