"""A folder of decoded pictures with a table of their files' sizes, as other projects leave it, as a system.

DIR/sizes.csv (or sizes.parquet)   columns key, point, bytes: a row a picture and point
DIR/POINT/KEY.png                  what was decoded there; any kind of picture that is opened without loss will do

KEY is the picture's in this evaluation, POINT a number as the table writes it.
"""

from __future__ import annotations

import functools
import hashlib
import io
from typing import NamedTuple

import pandas as pd

from corrdiff.errors import UsageError
from corrdiff.images import EXTENSIONS, ImageError, open_image
from corrdiff.picture import Picture
from pipelines.evaluate.coded import Coded
from pipelines.files import storage

TABLES = ("sizes.csv", "sizes.parquet")
COLUMNS = ("key", "point", "bytes")


class Sizes(NamedTuple):
    """What the table of a folder says."""

    points: tuple[str, ...]
    """As they are written, from the lowest number to the highest."""
    bytes: dict[tuple[str, str], int]
    """Of each key and point."""
    digest: str
    """Of the table's content: of another table the rows would not belong together."""


@functools.cache
def read_sizes(folder: str) -> Sizes:
    """Read the table of a folder. Raises `UsageError` where it is not there, or not as it has to be."""
    for name in TABLES:
        uri = storage.join(folder, name)
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError:
            continue
        return _sizes(uri, data)
    raise UsageError(f"--reconstructions: there is neither {TABLES[0]} nor {TABLES[1]} in {folder}")


def _sizes(uri: str, data: bytes) -> Sizes:
    try:
        file = io.BytesIO(data)
        table = pd.read_parquet(file) if uri.endswith(".parquet") else pd.read_csv(file, dtype=str)
    except (ValueError, OSError) as error:
        raise UsageError(f"{uri} cannot be read as a table ({str(error).splitlines()[0]})") from None
    lacking = [name for name in COLUMNS if name not in table]
    if lacking:
        raise UsageError(f"{uri} has no column {' and no column '.join(lacking)}; it has {', '.join(map(str, table))}")
    found: dict[tuple[str, str], int] = {}
    for row, (key, point, size) in enumerate(zip(*(table[name].astype(str) for name in COLUMNS), strict=True)):
        try:
            float(point)
            count = int(size)
        except ValueError:
            raise UsageError(f"{uri}, row {row}: point {point} and bytes {size} must be numbers") from None
        if count < 1:
            raise UsageError(f"{uri}, row {row}: bytes must be at least 1, not {count}")
        if (key, point) in found:
            raise UsageError(f"{uri} has key {key} at point {point} twice")
        found[key, point] = count
    points = tuple(sorted({point for _, point in found}, key=lambda point: (float(point), point)))
    if len(set(map(float, points))) < len(points):
        raise UsageError(f"{uri} writes one point in two ways, among {', '.join(points)}")
    return Sizes(points, found, hashlib.blake2b(data, digest_size=8).hexdigest())


def code(folder: str, key: str, point: str, original: Picture) -> Coded:
    """Take one picture at one point from a folder.

    Raises:
        OSError: the table or the folder does not have it, or it is not of the original's size.
    """
    size = read_sizes(folder).bytes.get((key, point))
    if size is None:
        raise OSError(f"the table has no size of it at point {point}")
    height, width = original.shape[:2]
    try:
        picture = open_image(_read(folder, key, point), height * width).pixels
    except ImageError as error:
        raise OSError(f"at point {point}: {error}") from None
    if picture.shape != original.shape:
        sizes = f"{picture.shape[1]}x{picture.shape[0]}, the original is {width}x{height}"
        raise OSError(f"at point {point} it is of {sizes}")
    return Coded(picture, size, float(point))


def _read(folder: str, key: str, point: str) -> bytes:
    for extension in (".png", *EXTENSIONS):
        try:
            return storage.read_bytes(storage.join(folder, point, f"{key}{extension}"))
        except FileNotFoundError:
            continue
    raise OSError(f"there is no picture {point}/{key}.png")
