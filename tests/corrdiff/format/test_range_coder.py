from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrdiff.format.range_coder import SYMBOL_MAX, SYMBOL_MIN, RangeTables
from tests.support.second_reader import Table, read_symbols


def _tables(rows: list[list[int]], offsets: list[int]) -> RangeTables:
    """Tables of frequencies that sum to 2**16, the last of each for the escape."""
    longest = max(len(row) for row in rows)
    cdf = np.zeros((len(rows), longest + 1), np.int32)
    for i, row in enumerate(rows):
        cdf[i, 1 : len(row) + 1] = np.cumsum(row)
    lengths = np.array([len(row) + 1 for row in rows], np.int32)
    return RangeTables("test", cdf, lengths, np.array(offsets, np.int32))


FREQUENCIES = [[20000, 30000, 15000, 536], [65535, 1], [1, 65533, 1, 1], [13107, 13107, 13107, 13107, 13107, 1]]
OFFSETS = [-1, 0, -1, 300]
TABLES = _tables(FREQUENCIES, OFFSETS)
DOCUMENTED = [Table(np.cumsum([0, *row]).tolist(), o) for row, o in zip(FREQUENCIES, OFFSETS, strict=True)]


def _arrays(symbols: list[int], indexes: list[int]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    return np.array(symbols, np.int32), np.array(indexes, np.uint8)


drawn = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(st.integers(-3, 4), st.integers(SYMBOL_MIN, SYMBOL_MAX))), max_size=60
)


@given(drawn)
def test_what_was_encoded_is_decoded_and_a_reader_written_from_the_documentation_agrees(
    pairs: list[tuple[int, int]],
) -> None:
    indexes, symbols = [i for i, _ in pairs], [s for _, s in pairs]
    data = TABLES.encode(*_arrays(symbols, indexes))
    assert TABLES.decode(data, np.array(indexes, np.uint8)).tolist() == symbols
    assert read_symbols(data, [DOCUMENTED[i] for i in indexes]) == symbols


def test_the_size_is_that_of_the_information() -> None:
    rng = np.random.default_rng(0)
    p = np.array(FREQUENCIES[0][:3]) / sum(FREQUENCIES[0][:3])
    symbols = rng.choice(3, 100_000, p=p).astype(np.int32) - 1
    bits = -np.log2(np.array(FREQUENCIES[0][:3]) / 65536)[symbols + 1].sum()
    assert 8 * len(TABLES.encode(symbols, np.zeros(100_000, np.uint8))) == pytest.approx(bits, abs=64)


def test_symbols_that_say_nothing_take_next_to_nothing() -> None:
    assert len(TABLES.encode(np.zeros(1000, np.int32), np.ones(1000, np.uint8))) <= 4
    assert TABLES.encode(np.zeros(0, np.int32), np.zeros(0, np.uint8)) == b""


@pytest.mark.parametrize("cut", [1, 2, 4, 10])
def test_a_stream_that_lacks_its_end_is_refused(cut: int) -> None:
    symbols, indexes = np.tile(np.array([-1, 0, 1], np.int32), 100), np.zeros(300, np.uint8)
    data = TABLES.encode(symbols, indexes)
    with pytest.raises(ValueError, match="stream"):
        TABLES.decode(data[:-cut], indexes)
    with pytest.raises(ValueError, match="stream"):
        TABLES.decode(data[cut:], indexes)


@pytest.mark.parametrize("more", [b"\x00", b"\x01", b"\xff" * 9, b"\x01" * 1_000_000])
def test_a_stream_with_more_behind_it_is_refused(more: bytes) -> None:
    symbols, indexes = np.tile(np.array([-1, 0, 1], np.int32), 100), np.zeros(300, np.uint8)
    with pytest.raises(ValueError, match="stream"):
        TABLES.decode(TABLES.encode(symbols, indexes) + more, indexes)


@given(st.binary(max_size=60), st.lists(st.integers(0, 3), max_size=30))
def test_bytes_that_nobody_wrote_give_symbols_in_range_or_an_error(data: bytes, indexes: list[int]) -> None:
    try:
        symbols = TABLES.decode(data, np.array(indexes, np.uint8))
    except ValueError:
        return
    assert TABLES.encode(symbols, np.array(indexes, np.uint8)) == data
    assert all(SYMBOL_MIN <= s <= SYMBOL_MAX for s in symbols.tolist())
