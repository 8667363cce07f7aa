"""Correction factors <-> bytes.

Shapes: S steps; P planes, one or two (low and high); R rows and C columns of cells; levels are whole numbers
0..2**bits - 1.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from corrdiff.format.range_coder import RangeTables

LOW, HIGH = 0, 1
"""Order of the planes of factors, where there are two."""

_DECAY_EIGHTHS = (0, 1, 2, 3, 4, 5, 6, 8)
"""Ratio of the frequencies of neighbouring residuals, in eighths, for each of the coder's tables."""


def encode_factors(levels_SPRC: npt.NDArray[np.uint8], bits: int) -> bytes:
    """Code the levels of all steps to bytes: which frequency table codes each plane best, then rANS.

    A level is coded as its difference (modulo 2**bits) from the same cell one step earlier; in the first step from its
    left neighbour, in the first column from the one above, and in the first cell from 2**(bits - 1).
    """
    residuals = _residuals(levels_SPRC, bits)
    lengths_TL, tables = _factor_tables(bits)
    chosen = [
        int((lengths_TL @ np.bincount(residuals[:, p].ravel(), minlength=1 << bits)).argmin())
        for p in range(residuals.shape[1])
    ]
    first = sum(table << 4 * p for p, table in enumerate(chosen))
    return bytes([first]) + tables.encode(residuals.ravel(), _table_index(residuals.shape, chosen))


def decode_factors(data: bytes, shape_SPRC: tuple[int, int, int, int], bits: int) -> npt.NDArray[np.uint8]:
    """Decode what `encode_factors` wrote. Raises `ValueError` where the bytes are no factors."""
    planes = shape_SPRC[1]
    chosen = [data[0] >> 4 * p & 15 for p in range(planes)] if data else [len(_DECAY_EIGHTHS)]
    if max(chosen) >= len(_DECAY_EIGHTHS) or data[0] >> 4 * planes:
        raise ValueError("the factors name an unknown frequency table")
    residuals = _factor_tables(bits)[1].decode(data[1:], _table_index(shape_SPRC, chosen)).reshape(shape_SPRC)
    if residuals.min() < 0 or residuals.max() >= (1 << bits):
        raise ValueError("a correction factor is out of range")
    residuals[0, :, 0, 0] += 1 << (bits - 1)
    residuals[0, :, :, 0] = residuals[0, :, :, 0].cumsum(axis=-1)
    residuals[0] = residuals[0].cumsum(axis=-1)
    return (residuals.cumsum(axis=0) % (1 << bits)).astype(np.uint8)


def _residuals(levels_SPRC: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    levels = levels_SPRC.astype(np.int32)
    predicted = np.empty_like(levels)
    predicted[0, :, 0, 0] = 1 << (bits - 1)
    predicted[0, :, 1:, 0] = levels[0, :, :-1, 0]
    predicted[0, :, :, 1:] = levels[0, :, :, :-1]
    predicted[1:] = levels[:-1]
    return (levels - predicted) % (1 << bits)


def _table_index(shape_SPRC: tuple[int, ...], chosen: list[int]) -> npt.NDArray[np.uint8]:
    steps, _, rows, columns = shape_SPRC
    return np.tile(np.repeat(np.array(chosen, np.uint8), rows * columns), steps)


@functools.cache
def _factor_tables(bits: int) -> tuple[npt.NDArray[np.float64], RangeTables]:
    """Make the frequencies, in integers and part of the format: two-sided geometric around 0 modulo 2**bits.

    Returns the bits that each residual takes in each table, [tables, 2**bits], and the tables.
    """
    n = 1 << bits
    frequencies = []
    for eighths in _DECAY_EIGHTHS:
        weight = [(eighths ** min(r, n - r) << 20) // 8 ** min(r, n - r) for r in range(n)]
        row = [1 + w * (65535 - n) // sum(weight) for w in weight]
        row[0] += 65535 - sum(row)
        frequencies.append([*row, 1])  # the last is the escape code, which no encoder uses
    table = np.array(frequencies)
    cdf = np.concatenate([np.zeros((len(table), 1), np.int64), table.cumsum(1)], axis=1).astype(np.int32)
    rows = np.full(len(table), n + 2, np.int32)
    return 16 - np.log2(table[:, :n]), RangeTables("factors", cdf, rows, np.zeros_like(rows))
