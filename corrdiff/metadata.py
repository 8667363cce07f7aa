"""What a picture file says beside its pixels: EXIF and XMP, as their bytes."""

from __future__ import annotations

import contextlib
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Literal

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from corrdiff.images import PNG_SIGNATURE, ImageError, identify, inflated

Kind = Literal["exif", "xmp"]

MOST_BYTES = 1 << 24
"""Of one of them; what is larger is as if it were not there."""

_ORIENTATION, _SHORT = 0x0112, 3
_XMP_TAG = 700
_XMP_KEYWORD = b"XML:com.adobe.xmp\0"
_EXIF_HEADER = b"Exif\0\0"
_OF_THE_FILE = {
    254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339, 347, 512,
    513, 514, 529, 530, 531, 532, 700, 34675,
}  # fmt: skip
"""Tags of a TIFF that say how its pixels lie, and where; XMP and profile, which are by themselves."""


def read_metadata(data: bytes) -> dict[Kind, bytes]:
    """Give what is there of both: EXIF as a block that begins with its TIFF header, XMP as XML.

    The orientation in either says "upright", for a picture that `open_image` gave is that: nobody is to turn it again.
    What cannot be read is as if it were not there.
    """
    try:
        found = _of_png(data) if data.startswith(PNG_SIGNATURE) else _of_others(data)
    except Exception:  # Pillow raises nearly anything for garbage
        return {}
    upright: dict[Kind, bytes] = {}
    for kind, content in found.items():
        if 0 < len(content) <= MOST_BYTES:
            upright[kind] = _upright_exif(content) if kind == "exif" else _upright_xmp(content)
    return upright


def _of_others(data: bytes) -> dict[Kind, bytes]:
    with contextlib.suppress(ImageError):
        image = identify(data)
        if isinstance(image, TiffImageFile):
            return _of_tiff(image)
        return _bytes_of({"exif": image.info.get("exif"), "xmp": image.info.get("xmp")})
    return {}


def _of_tiff(image: TiffImageFile) -> dict[Kind, bytes]:
    exif = Image.Exif()
    exif.load(image.getexif().tobytes())
    for tag in _OF_THE_FILE & set(exif):
        del exif[tag]
    return _bytes_of({"exif": exif.tobytes() if len(exif) else None, "xmp": image.tag_v2.get(_XMP_TAG)})


def _of_png(data: bytes) -> dict[Kind, bytes]:
    found: dict[Kind, Any] = {}
    for kind, content in _chunks(data):
        if kind == b"eXIf":
            found["exif"] = content
        elif kind == b"iTXt" and content.startswith(_XMP_KEYWORD):
            packed, said = content[len(_XMP_KEYWORD)], content[len(_XMP_KEYWORD) + 2 :]
            text = said.split(b"\0", 2)[-1]  # behind a language and a translated keyword
            found["xmp"] = inflated(text, MOST_BYTES) if packed else text
    return _bytes_of(found)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give kind and content of the chunks of a PNG whose checksums are right."""
    at = len(PNG_SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        content, at = data[at + 8 : at + 8 + length], at + 12 + length
        if at <= len(data) and zlib.crc32(content, zlib.crc32(kind)) == int.from_bytes(data[at - 4 : at], "big"):
            yield kind, content


def _bytes_of(found: dict[Kind, Any]) -> dict[Kind, bytes]:
    """Give what is bytes, or text, of what Pillow has."""
    as_bytes = {kind: v.encode() if isinstance(v, str) else v for kind, v in found.items()}
    return {kind: v.removeprefix(_EXIF_HEADER) for kind, v in as_bytes.items() if isinstance(v, bytes)}


def _upright_exif(block: bytes) -> bytes:
    """Give a block whose orientation is 1; all else in it keeps its place."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return block
    changed = bytearray(block)
    with contextlib.suppress(struct.error):
        (at,) = struct.unpack_from(f"{order}I", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, entry)
            if (tag, kind) == (_ORIENTATION, _SHORT):
                struct.pack_into(f"{order}H", changed, entry + 8, 1)
    return bytes(changed)


def _upright_xmp(xml: bytes) -> bytes:
    said = rb"(tiff:Orientation(?:=[\"']|>))[2-8](?=[\"'<])"
    return re.sub(said, rb"\g<1>1", xml)
