from __future__ import annotations

import dataclasses
import math
import struct
import zlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrdiff.format.bitstream import FIXED_BYTES_MAX, MAX_PIXELS, BitstreamError, Header, Streams, pack, unpack

FINGERPRINT = bytes.fromhex("0123456789abcdef")
HEADER = Header(FINGERPRINT, width=33, height=17, quality=4, steps=8, grid=128, factor_bits=4)
STREAMS = Streams(b"factors", b"z stream", b"the y stream")


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Of both versions, with everything that they can say."""
    width = draw(st.integers(1, (1 << 24) - 1))
    height = draw(st.integers(1, MAX_PIXELS // width))
    version = draw(st.integers(1, 2))
    quality = draw(st.integers(0, 7)) if version == 1 else draw(st.integers(0, 7 * 16)) / 16
    steps = draw(st.integers(2 - version, 64))
    grid, bits = draw(st.integers(0, 255)) * 16, draw(st.integers(1, 6))
    planes = 2 if version == 1 else draw(st.integers(1, 2))
    tile = draw(st.one_of(st.just(0), st.integers(4, 255).map(lambda units: 64 * units)))
    factors = (grid, bits, planes) if steps else (0, 0, 0)
    fingerprint = draw(st.binary(min_size=8, max_size=8))
    return Header(fingerprint, width, height, quality, steps, *factors[:2], tile, factors[2], version)


HEADER_2 = dataclasses.replace(HEADER, quality=4.3125, planes=1, version=2)
HEADER_0 = dataclasses.replace(HEADER_2, steps=0, grid=0, factor_bits=0, planes=0)


def seal(body: bytes) -> bytes:
    """The body with the checksum that belongs to it."""
    return body + struct.pack("<I", zlib.crc32(body))


@given(header=headers(), streams=st.builds(Streams, st.binary(), st.binary(), st.binary(max_size=300)))
def test_what_is_packed_is_unpacked(header: Header, streams: Streams) -> None:
    header = dataclasses.replace(header, tile=0)
    streams = streams if header.steps else streams._replace(factors=b"")
    assert unpack(pack(header, [streams]), header.fingerprint) == (header, [streams])


@given(st.integers(1, 1500), st.integers(1, 1500), st.integers(4, 30), st.randoms(use_true_random=False))
def test_tiles_are_unpacked_in_their_order(width: int, height: int, units: int, random: Random) -> None:
    side = 64 * units
    header = dataclasses.replace(HEADER, width=width, height=height, tile=side)
    count = math.ceil(width / side) * math.ceil(height / side)
    tiles = [Streams(*(random.randbytes(random.randrange(9)) for _ in range(3))) for _ in range(count)]
    assert unpack(pack(header, tiles)) == (header, tiles)
    with pytest.raises(BitstreamError):
        unpack(pack(header, tiles[:-1]))
    with pytest.raises(BitstreamError, match="bytes follow"):
        unpack(pack(header, [*tiles, STREAMS]))


@given(header=headers())
def test_header_and_checksum_take_at_most_32_bytes(header: Header) -> None:
    assert len(pack(header, [])) <= FIXED_BYTES_MAX == 32


def test_the_layout_is_the_documented_one() -> None:
    body = b"CRDF" + bytes([1, 0]) + FINGERPRINT + bytes([33, 17, 4, 8, 8, 4, 0])
    body += bytes([7]) + b"factors" + bytes([8]) + b"z stream" + bytes([12]) + b"the y stream"
    assert pack(HEADER, [STREAMS]) == seal(body)
    body = b"CRDF" + bytes([2, 0]) + FINGERPRINT + bytes([33, 17, 69, 8, 0, 8, 0x14])
    body += bytes([7]) + b"factors" + bytes([8]) + b"z stream" + bytes([12]) + b"the y stream"
    assert pack(HEADER_2, [STREAMS]) == seal(body)
    body = b"CRDF" + bytes([2, 0]) + FINGERPRINT + bytes([33, 17, 69, 0, 0])
    body += bytes([8]) + b"z stream" + bytes([12]) + b"the y stream"
    assert pack(HEADER_0, [STREAMS._replace(factors=b"")]) == seal(body)


@pytest.mark.parametrize("header", [HEADER, HEADER_2, HEADER_0])
def test_a_file_cut_anywhere_is_refused(header: Header) -> None:
    data = pack(header, [STREAMS])
    for length in range(len(data)):
        with pytest.raises(BitstreamError):
            unpack(data[:length])


def test_a_flip_of_any_bit_is_refused() -> None:
    data = pack(HEADER, [STREAMS])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BitstreamError):
            unpack(bytes(damaged))


@pytest.mark.parametrize("extra", [b"\0", b"trailing", b"CRDF"])
def test_bytes_after_the_checksum_are_refused(extra: bytes) -> None:
    with pytest.raises(BitstreamError, match="checksum mismatch"):
        unpack(pack(HEADER, [STREAMS]) + extra)


def test_bytes_after_the_last_stream_are_refused() -> None:
    with pytest.raises(BitstreamError, match="5 bytes follow the last stream"):
        unpack(seal(pack(HEADER, [STREAMS])[:-4] + b"extra"))


def test_another_kind_of_file_is_named_as_such() -> None:
    with pytest.raises(BitstreamError, match="not a corrdiff picture"):
        unpack(b"\x89PNG\r\n\x1a\n" + bytes(100))


def test_a_short_file_is_called_truncated() -> None:
    with pytest.raises(BitstreamError, match="truncated: 10 bytes"):
        unpack(pack(HEADER, [STREAMS])[:10])


@pytest.mark.parametrize("version", [0, 3, 255])
def test_an_unknown_version_is_named(version: int) -> None:
    body = bytearray(pack(HEADER, [STREAMS])[:-4])
    body[4] = version
    with pytest.raises(BitstreamError, match=f"version {version} is unknown, this program reads 1 and 2"):
        unpack(seal(bytes(body)))


@pytest.mark.parametrize("flags", [1, 0x80])
def test_unknown_flags_are_named(flags: int) -> None:
    body = bytearray(pack(HEADER, [STREAMS])[:-4])
    body[5] = flags
    with pytest.raises(BitstreamError, match=f"unknown flags 0x{flags:02x}"):
        unpack(seal(bytes(body)))


def test_a_file_of_another_codec_is_refused_with_both_fingerprints() -> None:
    with pytest.raises(BitstreamError, match=r"codec 0123456789abcdef.* given is fedcba9876543210"):
        unpack(pack(HEADER, [STREAMS]), bytes.fromhex("fedcba9876543210"))


def test_damage_is_reported_before_a_wrong_codec() -> None:
    data = bytearray(pack(HEADER, [STREAMS]))
    data[8] ^= 1
    with pytest.raises(BitstreamError, match="checksum mismatch"):
        unpack(bytes(data), FINGERPRINT)


def test_a_picture_over_the_limit_is_refused() -> None:
    data = pack(HEADER, [STREAMS])
    with pytest.raises(BitstreamError, match="33x17 is more than the limit of 560 pixels"):
        unpack(data, max_pixels=560)


def test_a_picture_at_the_limit_is_accepted() -> None:
    assert unpack(pack(HEADER, [STREAMS]), max_pixels=561).header == HEADER


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _body(width: bytes, height: bytes, rest: bytes, streams: bytes = b"\0\0\0", version: int = 1) -> bytes:
    return b"CRDF" + bytes([version, 0]) + FINGERPRINT + width + height + rest + streams


def _body_2(rest: list[int]) -> bytes:
    return _body(b"\x21", b"\x11", bytes(rest), version=2)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (_body(b"\0", b"\x11", bytes([4, 8, 0, 4, 0])), "dimensions 0x17"),
        (_body(b"\x21", b"\0", bytes([4, 8, 0, 4, 0])), "dimensions 33x0"),
        (_body(_varint(1 << 24), b"\1", bytes([4, 8, 0, 4, 0])), "dimensions 16777216x1"),
        (_body(_varint(1 << 20), _varint(1 << 20), bytes([4, 8, 0, 4, 0])), "more than the limit"),
        (_body(b"\x21", b"\x11", bytes([8, 8, 0, 4, 0])), "quality 8"),
        (_body(b"\x21", b"\x11", bytes([4, 0, 0, 4, 0])), "steps 0"),
        (_body(b"\x21", b"\x11", bytes([4, 65, 0, 4, 0])), "steps 65"),
        (_body_2([113, 8, 0, 0, 0x24]), r"quality 7\.0625"),
        (_body_2([64, 65, 0, 0, 0x24]), "steps 65"),
        (_body_2([64, 8, 0, 0, 0x20]), "bits 0"),
        (_body_2([64, 8, 0, 0, 0x27]), "bits 7"),
        (_body_2([64, 8, 0, 0, 0x04]), "planes 0"),
        (_body_2([64, 8, 0, 0, 0x34]), "planes 3"),
        (_body_2([64, 8, 3, 0, 0x24]), "tile 192"),
        (_body_2([64, 0, 3]), "tile 192"),
        (_body_2([64, 0, 0]), "1 bytes follow"),
        (_body(b"\x21", b"\x11", bytes([4, 8, 0, 0, 0])), "bits 0"),
        (_body(b"\x21", b"\x11", bytes([4, 8, 0, 7, 0])), "bits 7"),
        (_body(b"\x21", b"\x11", bytes([4, 8, 0, 4, 3])), "tile 192"),
        (_body(b"\xa1\x00", b"\x11", bytes([4, 8, 0, 4, 0])), "shortest form"),
        (_body(b"\xff\xff\xff\xff\xff\x01", b"\x11", bytes([4, 8, 0, 4, 0])), "too long"),
        (_body(b"\x21", b"\x11", bytes([4, 8, 0, 4, 0]), b"\0\0\x05abcd"), "longer than the file"),
        (_body(b"\x21", b"\x11", bytes([4, 8, 0, 4, 0]), b"\0\0"), "ends inside a field"),
    ],
)
def test_a_field_out_of_range_is_named_even_under_a_right_checksum(body: bytes, said: str) -> None:
    with pytest.raises(BitstreamError, match=said):
        unpack(seal(body))


def _unpacks_or_is_refused(data: bytes) -> bool:
    try:
        unpack(data)
    except BitstreamError:
        return False
    return True


@given(data=st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    assert not _unpacks_or_is_refused(data)


@given(rest=st.binary(max_size=80), version=st.integers(1, 2))
def test_sealed_garbage_is_unpacked_whole_or_refused(rest: bytes, version: int) -> None:
    data = seal(b"CRDF" + bytes([version, 0]) + rest)
    if _unpacks_or_is_refused(data):
        header, tiles = unpack(data)
        assert pack(header, tiles) == data
