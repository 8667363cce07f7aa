"""EXIF and XMP of every kind of file that has them, upright; garbage is as nothing."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from corrdiff.metadata import read_metadata

MODEL, ORIENTATION, GPS, EXIF_IFD, TAKEN = 0x0110, 0x0112, 0x8825, 0x8769, 0x9003
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6" dc:creator="Someone"/></x:xmpmeta>'
UPRIGHT_XMP = XMP.replace(b'tiff:Orientation="6"', b'tiff:Orientation="1"')


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[MODEL], exif[ORIENTATION] = "Camera", 6
    exif.get_ifd(GPS)[1] = "N"
    exif.get_ifd(EXIF_IFD)[TAKEN] = "2024:05:06 07:08:09"
    return exif


def _saved(kind: str, **more: object) -> bytes:
    buffer, exif = io.BytesIO(), _exif()
    if kind == "TIFF":
        exif[700] = XMP
    Image.new("RGB", (8, 6), (9, 99, 199)).save(buffer, kind, exif=exif.tobytes(), **more)
    return buffer.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(packed: bool) -> bytes:
    text = zlib.compress(XMP) if packed else XMP
    chunk = _chunk(b"iTXt", b"XML:com.adobe.xmp\0" + bytes([packed, 0]) + b"\0\0" + text)
    data = _saved("PNG")
    end = data.rindex(b"IEND") - 4
    return data[:end] + chunk + data[end:]


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: _saved("JPEG", xmp=XMP), "webp": lambda: _saved("WEBP", xmp=XMP),
    "avif": lambda: _saved("AVIF", xmp=XMP), "png": lambda: _png(packed=False),
    "png, packed": lambda: _png(packed=True), "tiff": lambda: _saved("TIFF"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_what_a_file_says_is_kept_and_says_upright(kind: str) -> None:
    found = read_metadata(FILES[kind]())
    assert found["exif"][:4] in (b"II*\0", b"MM\0*")
    exif = Image.Exif()
    exif.load(found["exif"])
    assert (exif[MODEL], exif[ORIENTATION]) == ("Camera", 1)
    assert exif.get_ifd(GPS)[1] == "N"
    assert exif.get_ifd(EXIF_IFD)[TAKEN] == "2024:05:06 07:08:09"
    assert found["xmp"] == UPRIGHT_XMP


def test_a_block_differs_in_its_orientation_alone() -> None:
    block = _exif().tobytes().removeprefix(b"Exif\0\0")
    kept = read_metadata(_saved("JPEG"))["exif"]
    assert len(kept) == len(block)
    assert [(a, b) for a, b in zip(block, kept, strict=True) if a != b] == [(6, 1)]


def test_a_file_that_says_nothing_gives_nothing() -> None:
    for kind in ("JPEG", "PNG", "BMP", "GIF"):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 6)).save(buffer, kind)
        assert read_metadata(buffer.getvalue()) == {}


def test_an_ill_checked_chunk_is_as_if_it_were_not_there() -> None:
    data = _saved("PNG")
    at = data.index(b"eXIf") + 20
    assert "exif" not in read_metadata(data[:at] + b"?" + data[at + 1 :])


@pytest.mark.parametrize("kind", FILES)
def test_damage_is_never_an_error(kind: str) -> None:
    data, draw = FILES[kind](), random.Random(0)
    assert read_metadata(b"") == read_metadata(b"no picture") == {}
    for _ in range(200):
        broken = bytearray(data)
        for _ in range(draw.randrange(1, 8)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        read_metadata(bytes(broken[: draw.randrange(1, len(broken) + 1)]))
