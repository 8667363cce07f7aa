"""What lies between the networks and the file: coding, and reading back what was coded."""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrdiff import coding
from corrdiff.codec import CorrDiffCodec, Pending, Settings
from corrdiff.codec_directory import load_networks
from corrdiff.format import bitstream
from corrdiff.format.bitstream import BitstreamError
from corrdiff.picture import Picture

Draw = Callable[..., Picture]


@pytest.mark.parametrize(("height", "width", "tile"), [(1, 1, 0), (17, 33, 0), (64, 64, 0), (40, 300, 256)])
def test_networks_and_coding_apart_give_the_files_that_they_give_together(
    codec: CorrDiffCodec, draw: Draw, height: int, width: int, tile: int
) -> None:
    pictures = [draw(height, width, seed) for seed in range(2)]
    asked = Settings(quality=6, steps=1, tile=tile)
    together = codec.compress_batch(pictures, asked)
    for apart, encoded in zip(codec.encode_batch(pictures, asked), together, strict=True):
        data = coding.write(apart, codec.tables)
        assert data == encoded.data
        assert np.array_equal(apart.reconstruction, encoded.reconstruction)
        assert all(np.array_equal(a, b) for a, b in zip(apart.factors, encoded.factors, strict=True))
        coding.verify(data, apart, codec.tables)


def test_coding_needs_no_more_than_the_tables_of_an_exported_codec(
    codec: CorrDiffCodec, codec_dir: Path, draw: Draw
) -> None:
    (here,) = codec.encode_batch([draw(20, 30)], Settings(steps=1))
    tables = load_networks(str(codec_dir))[1]
    data = coding.write(pickle.loads(pickle.dumps(here)), tables)  # noqa: S301 (what was pickled here)
    coding.verify(data, here, tables)
    assert data == codec.compress(draw(20, 30), steps=1)


@pytest.fixture(scope="module")
def pending(codec: CorrDiffCodec, draw: Draw) -> Pending:
    """A picture of two tiles that is not coded yet."""
    return codec.encode_batch([draw(16, 300)], Settings(quality=6, steps=1, tile=256))[0]


@pytest.mark.parametrize("tile", [0, 1])
def test_latents_that_decode_to_something_else_are_found(codec: CorrDiffCodec, pending: Pending, tile: int) -> None:
    data = coding.write(pending, codec.tables)
    symbols = [*pending.symbols]
    y_hat = symbols[tile].y_hat_Mhw.copy()
    y_hat[-1, -1, -1] += 1 / 64
    symbols[tile] = symbols[tile]._replace(y_hat_Mhw=y_hat)
    with pytest.raises(BitstreamError, match=f"the latents of tile {tile} decode to something else"):
        coding.verify(data, pending._replace(symbols=symbols), codec.tables)


@pytest.mark.parametrize("part", ["z_Nuv", "y_n"])
def test_a_file_of_other_symbols_is_found(codec: CorrDiffCodec, pending: Pending, part: str) -> None:
    symbols = [*pending.symbols]
    changed = getattr(symbols[1], part).copy()
    changed.flat[0] += 1
    symbols[1] = symbols[1]._replace(**{part: changed})
    data = coding.write(pending._replace(symbols=symbols), codec.tables)
    with pytest.raises(BitstreamError, match=r"latents of tile 1 decode to something else|cannot be read back"):
        coding.verify(data, pending, codec.tables)


@pytest.mark.parametrize("tile", [0, 1])
def test_factors_that_decode_to_something_else_are_found(codec: CorrDiffCodec, pending: Pending, tile: int) -> None:
    data = coding.write(pending, codec.tables)
    factors = [f.copy() for f in pending.factors]
    factors[tile].flat[-1] ^= 1
    with pytest.raises(BitstreamError, match=f"the factors of tile {tile} decode to something else"):
        coding.verify(data, pending._replace(factors=factors), codec.tables)


@pytest.mark.parametrize("field", ["width", "height", "quality", "steps", "grid", "factor_bits", "tile"])
def test_a_header_that_says_something_else_is_found(codec: CorrDiffCodec, pending: Pending, field: str) -> None:
    data = coding.write(pending, codec.tables)
    header = bitstream.Header(**{**vars(pending.header), field: 1 + vars(pending.header)[field]})
    with pytest.raises(BitstreamError, match="header is not what was to be written"):
        coding.verify(data, pending._replace(header=header), codec.tables)


def test_a_file_of_another_codec_is_not_verified(codec: CorrDiffCodec, pending: Pending) -> None:
    data = coding.write(pending, codec.tables)
    header = bitstream.Header(**{**vars(pending.header), "fingerprint": bytes(8)})
    with pytest.raises(BitstreamError, match=f"written by codec {codec.fingerprint.hex()}"):
        coding.verify(data, pending._replace(header=header), codec.tables)


@settings(max_examples=60)
@given(position=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), fresh=st.booleans())
def test_a_changed_byte_is_never_verified(
    codec: CorrDiffCodec, pending: Pending, position: float, change: int, fresh: bool
) -> None:
    data = bytearray(coding.write(pending, codec.tables))
    data[int(position * (len(data) - 4))] ^= change
    if fresh:
        data[-4:] = struct.pack("<I", zlib.crc32(data[:-4]))
    with pytest.raises(BitstreamError):
        coding.verify(bytes(data), pending, codec.tables)
