"""Picture files of every kind, whole and damaged."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from corrdiff.picture import Picture


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    """What Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(header: bytes, rows: bytes) -> bytes:
    """A PNG of this header and these filtered rows."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png16(values: npt.NDArray[np.uint16], colour_type: int) -> bytes:
    """A PNG of 16-bit samples, which Pillow cannot write in colour. values: [H, W, C]."""
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0), rows)


def interlaced(pixels: Picture, kept: float = 1.0) -> bytes:
    """A PNG in seven passes, of whose bytes a share is kept."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    parts = [pixels[top::down, left::right] for top, left, down, right in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part if row.size)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    return png(header, rows[: int(kept * len(rows))])


def linear_light_profile() -> bytes:
    """An ICC profile with the primaries of sRGB and no gamma curve."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + fixed(*values)

    text = b"Linear light\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {
        b"desc": description + bytes(-len(description) % 4),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4360, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7139),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv" + bytes(8)),
    }
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    header = struct.pack(
        ">I4sI4s4s4s", 128 + len(table) + len(body), b"\0\0\0\0", 0x02400000, b"mntr", b"RGB ", b"XYZ "
    )
    header += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249) + bytes(48)
    return header + table + body


def taller(data: bytes, kind: str) -> bytes:
    """The file, its header saying that the picture (of 40 rows) has 400."""
    changed = bytearray(data)
    if kind == "JPEG":
        start = next(i for i in range(len(data)) if data[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
        struct.pack_into(">H", changed, start + 5, 400)
    elif kind == "PNG":
        struct.pack_into(">I", changed, 20, 400)
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
    elif kind == "WEBP":
        struct.pack_into("<H", changed, data.index(b"VP8 ") + 16, 400)
    elif kind == "TIFF":
        directory = struct.unpack_from("<I", data, 4)[0]
        for i in range(struct.unpack_from("<H", data, directory)[0]):
            if struct.unpack_from("<H", data, directory + 2 + 12 * i)[0] == 257:
                struct.pack_into("<H", changed, directory + 2 + 12 * i + 8, 400)
    elif kind == "GIF":
        struct.pack_into("<H", changed, 8, 400)
        struct.pack_into("<H", changed, data.index(b"\x2c\0\0\0\0") + 7, 400)
    elif kind == "BMP":
        struct.pack_into("<i", changed, 22, 400)
    return bytes(changed)
