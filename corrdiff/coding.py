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

from corrdiff.correction import Grid, dequantise
from corrdiff.format import bitstream, factor_coding
from corrdiff.format.bitstream import BitstreamError, Header, Streams
from corrdiff.format.entropy_tables import EntropyTables, LatentStreams, Symbols
from corrdiff.picture import Picture
from corrdiff.tiling import Layout


class Pending(NamedTuple):
    """A picture that the networks are done with."""

    header: Header
    symbols: list[Symbols]
    """Of each tile, row by row."""
    reconstruction: Picture
    factors: list[npt.NDArray[np.uint8]]


def write(pending: Pending, tables: EntropyTables) -> bytes:
    """Code a picture: the bytes of a .crdf file."""
    return pack(pending.header, tables.code(pending.symbols), pending.factors)


def verify(data: bytes, pending: Pending, tables: EntropyTables) -> None:
    """Decode a file to its latents and factors and compare them with what was to be coded.

    Raises `BitstreamError` where the file cannot be read or says something else.
    """
    header = pending.header
    parsed = bitstream.unpack(data, header.fingerprint, header.width * header.height)
    if parsed.header != header:
        raise BitstreamError("the file's header is not what was to be written")
    layout = layout_of(header)
    for (i, j), streams, symbols, levels in zip(layout, parsed.tiles, pending.symbols, pending.factors, strict=True):
        steps, planes, rows, columns = levels.shape
        try:
            y_hat_1Mhw = tables.decode([streams.z], [streams.y], symbols.z_Nuv[0].shape)
            found = factor_coding.decode_factors(streams.factors, (steps, planes, rows, columns), header.factor_bits)
        except ValueError as error:
            raise BitstreamError(f"the file cannot be read back: {error}") from None
        if not np.array_equal(y_hat_1Mhw[0].cpu().numpy(), symbols.y_hat_Mhw):
            raise BitstreamError(f"the latents of tile {layout.index(i, j)} decode to something else")
        if not np.array_equal(found, levels):
            raise BitstreamError(f"the factors of tile {layout.index(i, j)} decode to something else")


def pack(header: Header, streams: Sequence[LatentStreams], factors: Sequence[npt.NDArray[np.uint8]]) -> bytes:
    """Streams and factors of each tile -> the bytes of a .crdf file."""
    bits = header.factor_bits
    tiles = [Streams(factor_coding.encode_factors(f, bits), s.z, s.y) for s, f in zip(streams, factors, strict=True)]
    return bitstream.pack(header, tiles)


def layout_of(header: Header) -> Layout:
    return Layout(header.height, header.width, header.tile)


def batch_key(header: Header) -> tuple[int, ...]:
    """Files that agree in this can be decoded together."""
    return header.width, header.height, header.steps, header.grid, header.factor_bits, header.tile


def read_factors(parsed: bitstream.Bitstream, grid: Grid, tile: int) -> Tensor:
    """One tile's factors, [S, P, R, C]."""
    header = parsed.header
    shape = (header.steps, factor_coding.PLANES, grid.rows, grid.columns)
    try:
        levels = factor_coding.decode_factors(parsed.tiles[tile].factors, shape, header.factor_bits)
    except ValueError as error:
        raise BitstreamError(f"the correction factors are not valid: {error}") from None
    return dequantise(torch.from_numpy(levels), header.factor_bits)
