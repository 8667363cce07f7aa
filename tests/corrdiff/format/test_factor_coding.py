from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrdiff.config import MAX_FACTOR_BITS
from corrdiff.format.factor_coding import HIGH, decode_factors, encode_factors


@st.composite
def _levels(draw: st.DrawFn) -> tuple[npt.NDArray[np.uint8], int]:
    bits = draw(st.integers(1, MAX_FACTOR_BITS))
    shape = (draw(st.integers(1, 8)), draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    highest = draw(st.integers(0, 2**bits - 1))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return rng.integers(0, highest + 1, shape).astype(np.uint8), bits


@given(drawn=_levels())
def test_coded_factors_are_decoded(drawn: tuple[npt.NDArray[np.uint8], int]) -> None:
    levels, bits = drawn
    decoded = decode_factors(encode_factors(levels, bits), levels.shape, bits)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, levels)


def test_steady_factors_cost_less_than_erratic_ones() -> None:
    rng = np.random.default_rng(0)
    steady = np.full((8, 2, 6, 6), 11, dtype=np.uint8)
    erratic = rng.integers(0, 16, steady.shape).astype(np.uint8)
    assert 16 * len(encode_factors(steady, 4)) < len(encode_factors(erratic, 4))


def test_planes_have_tables_of_their_own() -> None:
    levels = np.full((8, 2, 8, 8), 11, dtype=np.uint8)
    levels[:, HIGH] = np.random.default_rng(0).integers(0, 16, (8, 8, 8))
    assert len(encode_factors(levels, 4)) <= 8 * 8 * 8 * 4 / 8 + 16


def test_erratic_factors_cost_hardly_more_than_their_bits() -> None:
    levels = np.random.default_rng(0).integers(0, 16, (8, 2, 16, 16)).astype(np.uint8)
    assert len(encode_factors(levels, 4)) <= levels.size * 4 / 8 * 1.01 + 9


@given(data=st.binary(max_size=100), bits=st.integers(1, MAX_FACTOR_BITS), planes=st.integers(1, 2))
def test_garbage_is_refused_or_gives_levels_in_range(data: bytes, bits: int, planes: int) -> None:
    try:
        levels = decode_factors(data, (2, planes, 2, 3), bits)
    except ValueError:
        return
    assert levels.shape == (2, planes, 2, 3)
    assert int(levels.max()) < 2**bits


@pytest.mark.parametrize(
    "data", [b"", bytes([8]), bytes([0x80]), b"\xff" * 20, b"\x11" + b"\xff" * 30, b"\x01" + bytes(10_000_000)]
)
def test_bytes_that_cannot_be_factors_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"unknown frequency table|out of range|a stream"):
        decode_factors(data, (2, 2, 2, 3), 4)


def test_one_plane_names_one_table() -> None:
    levels = np.full((2, 1, 2, 3), 7, np.uint8)
    data = bytearray(encode_factors(levels, 4))
    data[0] |= 0x10
    with pytest.raises(ValueError, match="unknown frequency table"):
        decode_factors(bytes(data), levels.shape, 4)
