"""What travels with the pictures of a compressed dataset: columns into a part's table, and everything out of it again.

A column that is called as one of a dataset's own, in whatever letters, becomes `original_NAME`; its metadata say what
it was called.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipelines.dataset.format import TRAVELLED
from pipelines.dataset.parts import PictureFile, read_part, read_part_table
from pipelines.dataset.units import Record
from pipelines.inputs.samples import Fields


def with_columns(table: pa.Table, rows: Sequence[bytes]) -> pa.Table:
    """The table of a part, and after its own columns those of the rows: Arrow streams of one row, or all empty."""
    if not any(rows):
        return table
    travelled = read_rows(rows)
    taken = {name.lower() for name in table.schema.names}
    for field, column in zip(travelled.schema, travelled.columns, strict=True):
        name = field.name
        while name.lower() in taken:
            name = f"original_{name}"
        taken.add(name.lower())
        metadata = {**(field.metadata or {}), TRAVELLED: field.name.encode()}
        table = table.append_column(field.with_name(name).with_metadata(metadata), column)
    return table


def original_columns(table: pa.Table) -> pa.Table:
    """The columns of a part's table that have travelled, as they were called."""
    travelled = [field for field in table.schema if TRAVELLED in (field.metadata or {})]
    fields = []
    for field in travelled:
        metadata = dict(field.metadata)
        name = metadata.pop(TRAVELLED).decode()
        fields.append(field.with_name(name).with_metadata(metadata or None))
    return pa.Table.from_arrays([table[field.name] for field in travelled], schema=pa.schema(fields))


def read_rows(rows: Iterable[bytes]) -> pa.Table:
    """Arrow streams of the same columns as one table."""
    return pa.concat_tables([_read(row) for row in rows]).unify_dictionaries().combine_chunks()


def _read(row: bytes) -> pa.Table:
    with pa.ipc.open_stream(pa.py_buffer(row)) as reader:
        return reader.read_all()


def read_part_with_columns(uri: str, record: Record) -> list[PictureFile]:
    """All pictures of a part, with files and columns that travel with them. Raises `JobError` as `read_part`."""
    files = read_part(uri, record)
    table = read_part_table(uri, record, every_column=True)
    columns = original_columns(table)
    if not columns.num_columns:
        return files
    places = {key: place for place, key in enumerate(table["key"].to_pylist())}
    return [
        PictureFile(file.key, file.data, Fields(file.fields.members, _stream(columns.slice(places[file.key], 1))))
        for file in files
    ]


def _stream(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    data: bytes = buffer.getvalue().to_pybytes()
    return data


def values(fields: Fields) -> dict[str, Any]:
    """What travels with one picture: ending -> bytes, column -> value."""
    columns: dict[str, Any] = _read(fields.row).to_pylist()[0] if fields.row else {}
    return dict(fields.members) | columns
