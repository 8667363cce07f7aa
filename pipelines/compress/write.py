"""The last stage of a compression: a unit whose pictures have all come -> its part, and then its record."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import time

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.compress.chunk import Done, Whole
from pipelines.dataset import units
from pipelines.dataset.fields import with_columns
from pipelines.dataset.format import part_name
from pipelines.dataset.units import File, Record
from pipelines.files import storage
from pipelines.files.tar import add_member
from pipelines.inputs.samples import DESCRIPTION, PICTURE


def write_unit(out: str, unit: int, whole: Whole, columns: pa.Schema) -> Record:
    """Write a unit's part and then its record; returns the record that counts.

    `columns` are the table's (to say them takes torch, which is not needed here).

    Raises `JobError` where something else is called as a file of the unit.
    """
    started = time.perf_counter()
    done = sorted(whole.pictures, key=lambda d: d.place)
    tar, offsets = _tar(done)
    tar_file = _file(unit, "tar", tar)
    rows = [{**d.row, "part": tar_file.name, "offset": offsets[d.place]} if d.data is not None else d.row for d in done]
    buffer = io.BytesIO()
    pq.write_table(with_columns(pa.Table.from_pylist(rows, columns), [d.fields.row for d in done]), buffer)
    parquet_file = _file(unit, "parquet", buffer.getvalue())
    units.begin_unit(out, unit, [tar_file.name, parquet_file.name])
    for file, data in ((tar_file, tar), (parquet_file, buffer.getvalue())):
        storage.write_once(storage.join(out, file.name), data)
    good = [d.row for d in done if d.data is not None]
    record = Record(
        unit=unit, tar=tar_file, parquet=parquet_file, pictures=len(done), failures=len(done) - len(good),
        bytes=sum(r["bytes"] for r in good), pixels=sum(r["width"] * r["height"] for r in good),
        seconds={**whole.seconds, "write": time.perf_counter() - started}, left_out=whole.left_out,
        members=sum(len(d.fields.members) for d in done),
    )  # fmt: skip
    counts = units.create_record(out, record)
    units.end_unit(out, counts)
    return counts


def _file(unit: int, extension: str, data: bytes) -> File:
    digest = hashlib.sha256(data).hexdigest()
    return File(part_name(unit, extension, digest), len(data), digest)


def _tar(done: list[Done]) -> tuple[bytes, dict[int, int]]:
    """The tar, and where in it each picture's file begins."""
    buffer, offsets = io.BytesIO(), {}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for d in done:
            if d.data is not None:
                row = d.row
                described = {k: row[k] for k in ("key", "source", "width", "height")} | {"changes": list(d.changes)}
                offsets[d.place] = add_member(tar, f"{row['key']}.{PICTURE}", d.data)
                add_member(tar, f"{row['key']}.{DESCRIPTION}", json.dumps(described).encode())
            for ending, data in (*d.fields.members, *d.fields.metadata):
                add_member(tar, f"{d.row['key']}.{ending}", data)
    return buffer.getvalue(), offsets
