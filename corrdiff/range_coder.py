"""Symbols <-> bytes: rANS with a frequency table for each symbol.

The coder is constriction's (32-bit words, 64-bit state, 24-bit probabilities). Symbols that share a table are coded
together, so that one call in compiled code serves all of them: the tables in rising order, the symbols of a table in
the order in which they were given. Reading never fails on its own; a stream counts as read only if it is used up.
"""

from __future__ import annotations

import itertools

import constriction
import numpy as np
import numpy.typing as npt

from corrdiff.errors import UsageError

SYMBOL_MIN, SYMBOL_MAX = -(1 << 14), (1 << 14) - 1
"""Range of a coded symbol, which is also that of the escape code: 15 bits."""

FREQUENCY_BITS = 16
"""A table's frequencies sum to 2**16."""

Ints = npt.NDArray[np.int32]
_Indexes = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_escape_model = constriction.stream.model.Uniform(1 << 15)


class RangeTables:
    """Frequency tables; the last entry of each announces an escaped symbol."""

    def __init__(self, name: str, cdf: Ints, length: Ints, offset: Ints) -> None:
        """Check and prepare the tables.

        Args:
            name: for messages.
            cdf: cumulative frequencies [tables, entries], 0 first, 2**16 at the end of each row's length.
            length: entries of each row.
            offset: symbol of the first entry of each row.

        Raises:
            UsageError: a row is no cumulative distribution.
        """
        rows = cdf.shape[0] if cdf.ndim == 2 else 0
        if not 0 < rows <= 1 << 16 or length.shape != (rows,) or offset.shape != (rows,):
            raise UsageError(f"codec tables: '{name}' has rows that do not agree")
        if int(length.min()) < 3 or int(length.max()) > cdf.shape[1]:
            raise UsageError(f"codec tables: '{name}' has a row length outside its table")
        if int(offset.min()) < SYMBOL_MIN or int((offset + length).max()) > SYMBOL_MAX:
            raise UsageError(f"codec tables: '{name}' has symbols outside {SYMBOL_MIN}..{SYMBOL_MAX}")
        self._models = []
        for row, n in zip(cdf, length, strict=True):
            frequencies = np.diff(row[:n].astype(np.int64))
            if row[0] != 0 or row[n - 1] != 1 << FREQUENCY_BITS or frequencies.min() <= 0:
                raise UsageError(f"codec tables: '{name}' has a row that is no cumulative distribution")
            # Whole numbers that sum to a power of two: the coder's scaling of them to 24 bits is exact in float64.
            self._models.append(
                constriction.stream.model.Categorical(frequencies.astype(np.float64), lazy=False, perfect=False)
            )
        self._offsets = offset.astype(np.int32)
        self._escapes = (length - 2).astype(np.int32)

    def __len__(self) -> int:
        return len(self._models)

    def encode(self, symbols: Ints, indexes: _Indexes) -> bytes:
        """Code symbols [n] in SYMBOL_MIN..SYMBOL_MAX, each with the table of its index [n]."""
        order, counts = _grouped(indexes, len(self))
        grouped = symbols[order]
        entries = grouped - np.repeat(self._offsets, counts)
        last = np.repeat(self._escapes, counts)
        escaped = (entries < 0) | (entries >= last)
        coder = constriction.stream.stack.AnsCoder()
        if escaped.any():
            coder.encode_reverse(grouped[escaped] - SYMBOL_MIN, _escape_model)
            entries = np.where(escaped, last, entries)
        ends = np.cumsum(counts)
        for i in np.flatnonzero(counts)[::-1]:
            coder.encode_reverse(entries[ends[i] - counts[i] : ends[i]], self._models[i])
        data: bytes = coder.get_compressed().astype("<u4").tobytes()
        return data.rstrip(b"\0")

    def decode(self, data: bytes, indexes: _Indexes) -> Ints:
        """Inverse of `encode`. Raises `ValueError` where the bytes are not what it writes for these indexes."""
        if data.endswith(b"\0"):
            raise ValueError("a stream ends in a zero byte")
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        coder = constriction.stream.stack.AnsCoder(words)
        order, counts = _grouped(indexes, len(self))
        entries = np.empty(len(indexes), np.int32)
        for i, (start, end) in enumerate(itertools.pairwise([0, *np.cumsum(counts).tolist()])):
            if end > start:
                entries[start:end] = coder.decode(self._models[i], end - start)
        escaped = entries == np.repeat(self._escapes, counts)
        grouped = entries + np.repeat(self._offsets, counts)
        if escaped.any():
            said = coder.decode(_escape_model, int(escaped.sum())) + SYMBOL_MIN
            entry = said - np.repeat(self._offsets, counts)[escaped]
            if ((entry >= 0) & (entry < entries[escaped])).any():
                raise ValueError("a symbol is escaped that its table has")
            grouped[escaped] = said
        if not coder.is_empty():
            raise ValueError("a stream does not end with its last symbol")
        symbols = np.empty_like(grouped)
        symbols[order] = grouped
        return symbols


def _grouped(indexes: _Indexes, tables: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The order in which symbols are coded, and how many there are for each table."""
    return np.argsort(indexes, kind="stable"), np.bincount(indexes, minlength=tables)
