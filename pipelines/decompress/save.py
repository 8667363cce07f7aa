"""The last stage of a decompression: pictures -> PNG, WebP or JPEG, as files or as shards.

A shard is a WebDataset: KEY.png, and the files that travel with the picture. Of a dataset that was a table it is one
again: the columns, and the pictures in the column in which they were.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from corrdiff.errors import JobError
from corrdiff.images import save_png
from corrdiff.picture import Picture
from pipelines.dataset.fields import read_rows
from pipelines.decompress.stages import Decoded, Portion
from pipelines.files import storage
from pipelines.files.tar import add_member

Format = Literal["png", "webp", "jpeg"]
EXTENSIONS: dict[Format, str] = {"png": "png", "webp": "webp", "jpeg": "jpg"}
JPEG_QUALITY = 95

LONGEST_NAME_BYTES = 255
"""Of a file or a directory on the disks of Linux."""

SHARD = re.compile(r"shard-(\d{5,})-\d{3,}\.(tar|parquet)")
"""The unit, and what kind of file it is."""


def save_portion(
    row: dict[str, Any], out: str, kind: Format, shards: bool, overwrite: bool, column: str = "image"
) -> dict[str, Any]:
    """A Ray task: pictures -> files, or one shard of them and of what travels with them; `column` is where a table has
    its pictures.

    Raises `JobError` where a file is there with other bytes and may not be written over, or where a file that travels
    is called as the picture.
    """
    portion: Portion[Decoded] = row["portion"]
    write = _write_over if overwrite else storage.write_once
    if not shards:
        for p in portion.pictures:
            write(storage.join(out, _safe(file_name(p.key, kind))), to_file(p.pixels, kind))
    elif portion.pictures:
        is_table = any(p.fields.row for p in portion.pictures)
        data = _table(portion.pictures, kind, column) if is_table else _tar(portion.pictures, kind)
        name = f"shard-{portion.unit:05d}-{portion.number:03d}.{'parquet' if is_table else 'tar'}"
        write(storage.join(out, name), data)
    return {"unit": portion.unit, "portions": portion.of, "pictures": len(portion.pictures)}


def _write_over(uri: str, data: bytes) -> None:
    storage.write_bytes(uri, data, storage.PATIENT_ATTEMPTS)


def _tar(pictures: Sequence[Decoded], kind: Format) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for p in pictures:
            if EXTENSIONS[kind] in {ending.lower() for ending, _ in p.fields.members}:
                raise JobError(f"a .{EXTENSIONS[kind]} travels with the picture '{p.key}': choose another --format")
            add_member(tar, file_name(p.key, kind), to_file(p.pixels, kind))
            for ending, data in p.fields.members:
                add_member(tar, f"{p.key}.{ending}", data)
    return buffer.getvalue()


def _table(pictures: Sequence[Decoded], kind: Format, column: str) -> bytes:
    """A Parquet file of the columns that travel, with the pictures beside their paths where these are known."""
    table = read_rows([p.fields.row for p in pictures])
    files = pa.array([to_file(p.pixels, kind) for p in pictures], pa.binary())
    place = table.schema.get_field_index(column)
    if place < 0:
        table = table.add_column(0, column, files)
    else:
        paths = table.column(place).combine_chunks()
        is_struct = pa.types.is_struct(paths.type)
        parts = dict(zip((f.name for f in paths.type), paths.flatten(), strict=True)) if is_struct else {"path": paths}
        table = table.set_column(place, column, pa.StructArray.from_arrays([files, *parts.values()], ["bytes", *parts]))
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def to_file(pixels: Picture, kind: Format) -> bytes:
    """A picture as a PNG, a lossless WebP, or a JPEG."""
    if kind == "png":
        return save_png(pixels)
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "webp" else {"quality": JPEG_QUALITY}
    Image.fromarray(pixels).save(buffer, kind.upper(), **options)
    return buffer.getvalue()


def file_name(key: str, kind: Format) -> str:
    """What the picture of a key is called."""
    return f"{key}.{EXTENSIONS[kind]}"


def leads_out(name: str) -> bool:
    """Whether a name is no path inside a directory."""
    return name.startswith("/") or ".." in name.split("/")


def longest_part(name: str) -> int:
    """Bytes of the longest name in a path."""
    return max(len(part.encode()) for part in name.split("/"))


def _safe(name: str) -> str:
    """Raises `JobError` for a name that leads out of the directory."""
    if leads_out(name):
        raise JobError(f"the key of '{name}' is no path inside a directory; write shards instead")
    return name
