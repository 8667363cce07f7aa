"""PNG files of crops to pixels, about twice as fast as the general decoders.

For what `corrdiff shard` has written and a SHA-256 has confirmed: 8-bit RGB, not interlaced. Anything else goes to
`corrdiff.images`, which believes nothing. (PNG: https://www.w3.org/TR/png-3/, filters in section 9.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from isal import igzip_lib, isal_zlib

from corrdiff.compiled import compiled
from corrdiff.images import open_image
from corrdiff.picture import Picture

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB8 = bytes((8, 2, 0, 0, 0))
"""Bit depth, colour type, and the only compression, filtering and interlacing that are meant here."""


HIGHEST_FILTER = 4


def decode(data: memoryview) -> Picture:
    """uint8 [H, W, 3]. Raises `ImageError` where it is no picture."""
    if bytes(data[:8]) != SIGNATURE or bytes(data[12:16]) != b"IHDR" or bytes(data[24:29]) != RGB8:
        return open_image(bytes(data)).pixels
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    at, compressed = 33, []
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), bytes(data[at + 4 : at + 8])
        if kind == b"IDAT":
            compressed.append(data[at + 8 : at + 8 + length])
        elif kind != b"IEND":  # colour profiles and the like are not for here
            return open_image(bytes(data)).pixels
        at += 12 + length
    try:
        filtered = isal_zlib.decompress(b"".join(compressed), bufsize=height * (3 * width + 1))
    except igzip_lib.IsalError:  # type: ignore[misc]  # its stub calls the class an instance
        return open_image(bytes(data)).pixels
    if len(filtered) != height * (3 * width + 1):
        return open_image(bytes(data)).pixels
    rows = np.frombuffer(filtered, np.uint8).reshape(height, 3 * width + 1)
    if rows[:, 0].max() > HIGHEST_FILTER:
        return open_image(bytes(data)).pixels
    out = np.empty((height, 3 * width), np.uint8)
    _unfilter(rows, out)
    return out.reshape(height, width, 3)


def _unfilter_rows(rows: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
    """Undo the five filters of PNG, row by row, three bytes a pixel."""
    height, stride = out.shape
    for y in range(height):
        kind, given, row = rows[y, 0], rows[y, 1:], out[y]
        if y == 0 and kind == 2:
            kind = np.uint8(0)
        if kind == 0:
            row[:] = given
        elif kind == 1:
            row[:3] = given[:3]
            for i in range(3, stride):
                row[i] = given[i] + row[i - 3]
        elif kind == 2:
            above = out[y - 1]
            for i in range(stride):
                row[i] = given[i] + above[i]
        else:
            for i in range(stride):
                left = np.int32(row[i - 3]) if i >= 3 else np.int32(0)
                up = np.int32(out[y - 1, i]) if y > 0 else np.int32(0)
                if kind == 3:
                    guess = (left + up) >> 1
                else:
                    corner = np.int32(out[y - 1, i - 3]) if y > 0 and i >= 3 else np.int32(0)
                    to_left, to_up = abs(up - corner), abs(left - corner)
                    to_corner = abs(left + up - 2 * corner)
                    if to_left <= to_up and to_left <= to_corner:
                        guess = left
                    elif to_up <= to_corner:
                        guess = up
                    else:
                        guess = corner
                row[i] = np.uint8(given[i] + guess)


_unfilter: Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], None] = compiled(_unfilter_rows)
