"""Parquet tables with a column of pictures: planned by row groups, read row by row, columns that travel with them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff.errors import UsageError
from corrdiff.uris import redacted, scheme
from pipelines.files import storage
from pipelines.inputs.samples import ALL, NONE, Allowance, Fields, Found, Travels, Unit, read_file
from pipelines.inputs.sources import Source

ROWS_AT_ONCE = 16
"""Of a table, that are in memory."""

NO_TABLE = (pa.ArrowException, OSError)

_CONTENT = "bytes"
"""In a struct that is a picture, as Hugging Face writes it, the name of what is not its path."""


def plan_table(source: Source, column: str, size: int, travels: Travels) -> Iterator[Unit]:
    """Paths are dealt in runs of `size`; of bytes a row group is a unit: to come to a row, all before it are read.

    Raises `UsageError` where it is no table, or has not the columns.
    """
    try:
        with _open(source.uri) as table:
            schema = table.schema_arrow
            columns = _columns_that_travel(schema, column, travels, source.uri)
            kind = schema.field(column).type
            paths = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            kept = columns.serialize().to_pybytes() if len(columns) else b""
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                step = size if paths else max(rows, 1)
                for first in range(0, rows, step):
                    count = min(step, rows - first)
                    yield Unit(
                        "table", [source.uri], [source.key], column, group, first, count, schema=kept,
                        marks=[source.mark],
                    )  # fmt: skip
    except NO_TABLE as error:
        raise UsageError(f"{source.uri} is no Parquet file ({str(error).splitlines()[0]})") from None


def _open(uri: str) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_ranges(uri))


def _columns_that_travel(schema: pa.Schema, column: str, travels: Travels, uri: str) -> pa.Schema:
    """Of a table's columns those that are named, without the picture's own bytes."""
    named = [] if travels.names in ((ALL,), (NONE,)) else list(travels.names)
    for name in (column, *named):
        if name not in schema.names:
            raise UsageError(f"{uri} has no column '{name}'; it has {', '.join(schema.names)}")
    wanted = [] if travels.names == (NONE,) else named or schema.names
    twice = next((name for name in wanted if schema.names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{uri} has two columns '{twice}'; name others with --columns")
    fields = (schema.field(name) for name in schema.names if name in wanted)
    kept = (_without_content(field) if field.name == column else field for field in fields)
    return pa.schema([field.with_nullable(True) for field in kept if field is not None])


def _without_content(field: pa.Field) -> pa.Field | None:
    """The column of pictures without their bytes: a path stays, also that of a struct; None where nothing does."""
    kind = field.type
    if pa.types.is_struct(kind):
        parts = [kind.field(i) for i in range(kind.num_fields) if kind.field(i).name != _CONTENT]
        return field.with_type(pa.struct(parts)) if parts else None
    return field if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def read_table(unit: Unit) -> Iterator[Found]:
    """As many rows as were planned, whatever has become of the table."""
    (uri,), (prefix,) = unit.uris, unit.keys
    source, done, first = redacted(uri), 0, unit.first
    schema = pa.ipc.read_schema(pa.py_buffer(unit.schema)) if unit.schema else pa.schema([])
    allowance, reason = Allowance(), "there is no such row any more"
    try:
        with _open(uri) as table:
            _check_columns(table.schema_arrow, unit.column, schema)
            first = sum(table.metadata.row_group(i).num_rows for i in range(unit.group)) + unit.first
            names = list(dict.fromkeys([unit.column, *schema.names]))
            batches = table.iter_batches(ROWS_AT_ONCE, row_groups=[unit.group], columns=names)
            for picture, row in itertools.islice(
                _values(batches, unit.column, schema), unit.first, unit.first + unit.pictures
            ):
                found = _cell(unit, f"{prefix}/{first + done:09d}", first + done, picture.as_py())
                done += 1
                yield _with_row(found, row, schema, allowance)
    except FileNotFoundError:
        reason = "there is no such file"
    except UsageError as error:
        reason = str(error)
    except (*NO_TABLE, IndexError) as error:
        reason = f"the table is broken ({type(error).__name__})"
    for row in range(first + done, first + unit.pictures):
        yield Found(f"{prefix}/{row:09d}", f"{source}, row {row}", None, reason, _nothing(schema))


def _check_columns(there: pa.Schema, column: str, planned: pa.Schema) -> None:
    """Raises `UsageError` where a table is not what was planned any more."""
    for name in (column, *planned.names):
        if name not in there.names:
            raise UsageError(f"the table has no column '{name}' any more")
    for field in planned:
        now = there.field(field.name)
        found = _without_content(now) if field.name == column else now
        if found is None or found.type != field.type:
            raise UsageError(f"the table's column '{field.name}' is of another type now")


def _values(batches: Iterator[pa.RecordBatch], column: str, schema: pa.Schema) -> Iterator[tuple[Any, pa.RecordBatch]]:
    """The picture of each row, and a batch of the columns that travel with it."""
    for batch in batches:
        pictures = batch.column(column)
        arrays = [_narrowed(batch.column(field.name), field) for field in schema]
        columns = pa.RecordBatch.from_arrays(arrays, schema=schema)
        for i in range(len(batch)):
            yield pictures[i], columns.slice(i, 1)


def _narrowed(array: pa.Array, field: pa.Field) -> pa.Array:
    """An array without what does not travel of it."""
    if array.type == field.type:
        return array
    parts = dict(zip((f.name for f in array.type), array.flatten(), strict=True))
    fields = list(field.type)
    return pa.StructArray.from_arrays([parts[f.name] for f in fields], fields=fields, mask=array.is_null())


def _with_row(found: Found, row: pa.RecordBatch, schema: pa.Schema, allowance: Allowance) -> Found:
    """A picture with the columns of its row; one whose columns are too large is a failure that says so."""
    if not len(schema):
        return found
    fields = Fields(row=_stream(row))
    refused = allowance.refuses(fields.size)
    if refused:
        return Found(
            found.key, found.source, None, f"its columns hold {refused}; name others with --columns", _nothing(schema)
        )
    return found._replace(fields=fields)


def _nothing(schema: pa.Schema) -> Fields:
    """A row of nothing but nulls."""
    if not len(schema):
        return Fields()
    return Fields(row=_stream(pa.RecordBatch.from_arrays([pa.nulls(1, f.type) for f in schema], schema=schema)))


def _stream(batch: pa.RecordBatch) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, batch.schema) as writer:
        writer.write_batch(batch)
    data: bytes = buffer.getvalue().to_pybytes()
    return data


def _cell(unit: Unit, key: str, row: int, value: Any) -> Found:
    """A picture's bytes, its path or URI, or both of them in a struct, as Hugging Face writes it."""
    (uri,) = unit.uris
    source = f"{redacted(uri)}, row {row}"
    if isinstance(value, dict):
        value = next((value[name] for name in (_CONTENT, "path") if value.get(name) is not None), None)
    if isinstance(value, bytes):
        return Found(key, source, value)
    if isinstance(value, str):
        here = scheme(value) or value.startswith("/")
        return read_file(key, value, value if here else storage.join(uri.rpartition("/")[0], value))
    kind = "nothing" if value is None else type(value).__name__
    return Found(key, source, None, f"column '{unit.column}' holds {kind}, neither a path nor bytes")
