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


def chunk(name: bytes, data: bytes, wrong: int = 0) -> bytes:
    """A chunk of a PNG, its checksum changed by `wrong`."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) ^ wrong)


def png(header: bytes, rows: bytes, between: bytes = b"") -> bytes:
    """A PNG of this header, other chunks, and these filtered rows."""
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + pixels + chunk(b"IEND", b"")


def packed(samples: npt.NDArray[np.integer[Any]], bits: int, order: str) -> bytes:
    """Rows of samples [H, W * C] of so many bits, each row in whole bytes."""
    if bits > 8 and bits % 8 == 0:
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    high_first = samples[..., None] >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(high_first.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def png_of(samples: npt.NDArray[np.integer[Any]], bits: int, between: bytes = b"") -> bytes:
    """A PNG of grey, grey and alpha, colour, or colour and alpha. samples: [H, W, C]."""
    height, width, channels = samples.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    row_bytes = -(-width * channels * bits // 8)
    rows = packed(samples.reshape(height, -1), bits, ">")
    filtered = b"".join(b"\0" + rows[i : i + row_bytes] for i in range(0, len(rows), row_bytes))
    return png(struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0), filtered, between)


def tiff_of(
    samples: npt.NDArray[Any], bits: int, photometric: int, *, planes: bool = False, alpha: int | None = None,
    kind: int = 1, order: str = "<", profile: bytes = b"",
) -> bytes:  # fmt: skip
    """A TIFF without compression.

    Args:
        samples: [H, W, C].
        bits: of a sample.
        photometric: 0 white is zero, 1 black is zero, 2 RGB.
        planes: channel after channel, and not pixel after pixel.
        alpha: 0, 1 or 2: the last channel is something, alpha that is multiplied in, or alpha that is not.
        kind: of a sample: 1 unsigned, 2 signed, 3 floating point.
        order: "<" or ">".
        profile: an ICC profile.
    """
    height, width, channels = samples.shape
    if kind == 1:
        parts = [samples[..., i] for i in range(channels)] if planes else [samples.reshape(height, -1)]
        strips = [packed(part, bits, order) for part in parts]
    else:
        parts = [samples[..., i] for i in range(channels)] if planes else [samples]
        strips = [part.astype(f"{order}{'i' if kind == 2 else 'f'}{bits // 8}").tobytes() for part in parts]
    entries: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]), (257, "I", [height]), (258, "H", [bits] * channels), (259, "H", [1]),
        (262, "H", [photometric]), (273, "I", [0] * len(strips)), (277, "H", [channels]), (278, "I", [height]),
        (279, "I", [len(strip) for strip in strips]), (284, "H", [2 if planes else 1]),
    ]  # fmt: skip
    if alpha is not None:
        entries.append((338, "H", [alpha]))
    entries.append((339, "H", [kind] * channels))
    if profile:
        entries.append((34675, "B", list(profile)))
    start = 8 + 2 + 12 * len(entries) + 4
    extra, places, where = b"", b"", start + sum(
        len(values) * struct.calcsize(code) for _, code, values in entries if len(values) * struct.calcsize(code) > 4
    )  # fmt: skip
    for strip in strips:
        places += struct.pack(f"{order}I", where)
        where += len(strip)
    directory = struct.pack(f"{order}H", len(entries))
    for tag, code, values in entries:
        data = places if tag == 273 else struct.pack(f"{order}{len(values)}{code}", *values)
        head = struct.pack(f"{order}HHI", tag, {"B": 7, "H": 3, "I": 4}[code], len(values))
        if len(data) <= 4:
            directory += head + data.ljust(4, b"\0")
        else:
            directory += head + struct.pack(f"{order}I", start + len(extra))
            extra += data
    begin = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return begin + directory + bytes(4) + extra + b"".join(strips)


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
