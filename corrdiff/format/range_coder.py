"""Symbols <-> bytes: rANS (Duda, arXiv 1311.2540) with a frequency table for each symbol.

16-bit frequencies, 64-bit state, 32-bit words. The state starts at 0, so that what says nothing takes no bytes, and a
stream counts as read only if it ends at 0 with all its words used. The loops are compiled by numba: they hold no lock,
so many streams can be coded at once over the cores, and they never read or write outside their arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from corrdiff.compiled import compiled
from corrdiff.errors import UsageError

ESCAPE_BITS = 15
SYMBOL_MIN, SYMBOL_MAX = -(1 << (ESCAPE_BITS - 1)), (1 << (ESCAPE_BITS - 1)) - 1
"""The range of a coded symbol is that of the bits behind an escape."""

FREQUENCY_BITS = 16
"""A table's frequencies sum to 2**16."""

Ints = npt.NDArray[np.int32]
_Words = npt.NDArray[np.uint32]


class RangeTables:
    """Frequency tables; the last entry of each announces an escaped symbol."""

    def __init__(self, name: str, cdf: Ints, length: Ints, offset: Ints) -> None:
        """Check and prepare the tables.

        Args:
            name: for messages.
            cdf: cumulative frequencies [tables, entries + 1], 0 first, 2**16 at the end of each row's length.
            length: numbers in each row.
            offset: symbol of the first entry of each row.

        Raises:
            UsageError: a row is no cumulative distribution.
        """
        rows = cdf.shape[0] if cdf.ndim == 2 else 0
        if not 0 < rows <= 1 << 16 or length.shape != (rows,) or offset.shape != (rows,):
            raise UsageError(f"codec tables: '{name}' has rows that do not agree")
        if int(length.min()) < 3 or int(length.max()) > cdf.shape[1]:
            raise UsageError(f"codec tables: '{name}' has a row length outside its table")
        if int(offset.min()) < SYMBOL_MIN or int((offset.astype(np.int64) + length).max()) > SYMBOL_MAX:
            raise UsageError(f"codec tables: '{name}' has symbols outside {SYMBOL_MIN}..{SYMBOL_MAX}")
        for row, n in zip(cdf, length, strict=True):
            if row[0] != 0 or row[n - 1] != 1 << FREQUENCY_BITS or (row[1:n] <= row[: n - 1]).any():
                raise UsageError(f"codec tables: '{name}' has a row that is no cumulative distribution")
        self._cdf = np.ascontiguousarray(cdf, np.uint32)
        self._escape = (length - 2).astype(np.int32)
        self._offset = np.ascontiguousarray(offset, np.int32)
        # The entry in which each 256th of the range begins: decoding searches on from there.
        starts = np.arange(256) << (FREQUENCY_BITS - 8)
        self._first = np.stack(
            [np.searchsorted(row[:n], starts, side="right") - 1 for row, n in zip(cdf, length, strict=True)]
        ).astype(np.int32)

    @property
    def for_decoding(self) -> tuple[_Words, Ints, Ints, Ints]:
        """What the compiled loop needs of the tables."""
        return self._cdf, self._first, self._escape, self._offset

    def __len__(self) -> int:
        return len(self._cdf)

    def encode(self, symbols: Ints, indexes: npt.NDArray[np.integer[Any]]) -> bytes:
        """Code symbols [n] in SYMBOL_MIN..SYMBOL_MAX, each with the table of its index [n]."""
        words = np.empty(2 * len(symbols) + 2, np.uint32)
        tables = self._cdf, self._escape, self._offset
        begin = _encode(symbols, indexes.astype(np.uint16), tables, words)
        return words[begin:].astype(">u4").tobytes().lstrip(b"\0")

    def decode(self, data: bytes, indexes: npt.NDArray[np.integer[Any]]) -> Ints:
        """Inverse of `encode`. Raises `ValueError` where the bytes are not what it writes for these indexes."""
        decoder = RangeDecoder(self, data)
        symbols = decoder.take(indexes)
        decoder.expect_end()
        return symbols


class RangeDecoder:
    """A stream that is decoded a run of symbols at a time, for tables that depend on the symbols before."""

    def __init__(self, tables: RangeTables, data: bytes) -> None:
        """Begin at the stream's first symbol. Raises `ValueError` where no stream begins so."""
        if data.startswith(b"\0"):
            raise ValueError("a stream begins with a zero byte")
        self._tables = tables.for_decoding
        self._words = np.frombuffer(bytes(-len(data) % 4) + data, ">u4").astype(np.uint32)
        self._at = np.array([min(2, len(self._words))], np.int64)
        self._state = np.zeros(1, np.uint64)
        for word in self._words[: self._at[0]]:
            self._state[0] = np.uint64(int(self._state[0]) << 32 | int(word))
        self._proper = True

    def take(self, indexes: npt.NDArray[np.integer[Any]]) -> Ints:
        """Decode the next symbols [n], each with the table of its index [n]."""
        symbols = np.empty(len(indexes), np.int32)
        self._proper &= _decode(self._words, indexes.astype(np.uint16), self._tables, self._state, self._at, symbols)
        return symbols

    def expect_end(self) -> None:
        """Raise `ValueError` where the bytes are not what `encode` writes for the symbols that were taken."""
        if not self._proper or self._state[0] != 0 or self._at[0] != len(self._words):
            raise ValueError("a stream does not end with its last symbol")


# The rest is compiled. Whole numbers are uint64 throughout, since numba makes floats of a mixture, and nothing is a
# function of its own, since that halves the speed.
_8, _16, _32, _48 = np.uint64(8), np.uint64(16), np.uint64(32), np.uint64(48)
_QUANTILE, _WORD = np.uint64((1 << FREQUENCY_BITS) - 1), np.uint64((1 << 32) - 1)
_ESCAPE_FREQUENCY = np.uint64(1 << (FREQUENCY_BITS - ESCAPE_BITS))


def _encode_loop(symbols, indexes, tables, words):  # type: ignore[no-untyped-def]
    """Fill `words` from its end, last symbol first; returns where they begin."""
    cdf, escape, offset = tables
    state, at = np.uint64(0), words.size
    for i in range(symbols.size - 1, -1, -1):
        table = indexes[i]
        entry = symbols[i] - offset[table]
        if entry < 0 or entry >= escape[table]:
            if (state >> _48) >= _ESCAPE_FREQUENCY:
                at -= 1
                words[at] = state & _WORD
                state >>= _32
            raw = np.uint64(symbols[i] - SYMBOL_MIN)
            quotient = state // _ESCAPE_FREQUENCY
            state = (quotient << _16) + (state - quotient * _ESCAPE_FREQUENCY) + raw * _ESCAPE_FREQUENCY
            entry = escape[table]
        start = np.uint64(cdf[table, entry])
        frequency = np.uint64(cdf[table, entry + 1]) - start
        if (state >> _48) >= frequency:
            at -= 1
            words[at] = state & _WORD
            state >>= _32
        quotient = state // frequency
        state = (quotient << _16) + (state - quotient * frequency) + start
    words[at - 1], words[at - 2] = state & _WORD, state >> _32
    return at - 2


def _decode_loop(words, indexes, tables, state_1, at_1, symbols):  # type: ignore[no-untyped-def]
    """Fill `symbols` and move on; returns whether no symbol is escaped that its table has."""
    cdf, first, escape, offset = tables
    state, at, proper = state_1[0], at_1[0], True
    for i in range(symbols.size):
        table = indexes[i]
        quantile = state & _QUANTILE
        entry = first[table, quantile >> _8]
        while cdf[table, entry + 1] <= quantile:
            entry += 1
        start = np.uint64(cdf[table, entry])
        state = (state >> _16) * (np.uint64(cdf[table, entry + 1]) - start) + quantile - start
        if state <= _WORD and at < words.size:
            state = (state << _32) | np.uint64(words[at])
            at += 1
        if entry == escape[table]:
            raw = (state & _QUANTILE) // _ESCAPE_FREQUENCY
            state = (state >> _16) * _ESCAPE_FREQUENCY + (state & _QUANTILE) - raw * _ESCAPE_FREQUENCY
            if state <= _WORD and at < words.size:
                state = (state << _32) | np.uint64(words[at])
                at += 1
            symbols[i] = np.int32(raw) + SYMBOL_MIN
            proper &= symbols[i] < offset[table] or symbols[i] >= offset[table] + entry
        else:
            symbols[i] = entry + offset[table]
    state_1[0], at_1[0] = state, at
    return proper


_encode, _decode = compiled(_encode_loop), compiled(_decode_loop)
