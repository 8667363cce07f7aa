"""What a compression has to do, written down before it starts: units of pictures, each of which is done or not done.

    DIRECTORY/00000.parquet   a row a unit, `UNITS_A_FILE` of them in a file

A unit is some files, a shard of a WebDataset (any tar of pictures), or a run of rows of a Parquet table with a column
of paths or of the pictures' bytes. Planning reads names, and of tables their sizes; a unit's pictures are found when it
is its turn.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff.errors import UsageError
from corrdiff.images import EXTENSIONS
from pipelines.files import storage
from pipelines.inputs import sources as pictures
from pipelines.inputs.sources import Keys, Source

UNITS_A_FILE = 256
ROWS_AT_ONCE = 16
"""Of a table, that are in memory."""

_NO_TABLE = (pa.ArrowException, OSError)

Kind = Literal["files", "shard", "table"]

SCHEMA = pa.schema([
    ("kind", pa.string()), ("uris", pa.list_(pa.string())), ("keys", pa.list_(pa.string())), ("column", pa.string()),
    ("group", pa.int64()), ("first", pa.int64()), ("pictures", pa.int64()),
])  # fmt: skip


class Unit(NamedTuple):
    """Some pictures that become one part of the output."""

    kind: Kind
    uris: list[str]
    """Of each picture, or the one of the shard or table."""
    keys: list[str]
    """Of each picture, or the one that those of the shard or table begin with."""
    column: str = ""
    """Of a table: where the paths or bytes are."""
    group: int = 0
    """Of a table: the row group, and the rows in it."""
    first: int = 0
    pictures: int = 0
    """0 where it is not `counted`."""

    @property
    def counted(self) -> bool:
        """Whether it is known how many pictures it has: a shard is not opened before its turn."""
        return self.kind != "shard"

    @property
    def keyed(self) -> bool:
        """Whether `keys` has the key of each picture, so that one of them is read without the others."""
        return self.kind == "files"


class Found(NamedTuple):
    """One picture of a unit, or why it is not there."""

    key: str
    source: str
    """Where it is from, for people."""
    data: bytes | None
    error: str = ""


class Count(NamedTuple):
    """How much there is to do."""

    units: int
    pictures: int | None
    """None where shards are among them."""


def plan_units(images: str, column: str | None, size: int) -> Iterator[Unit]:
    """The units of what an argument names, as they are found.

    Tars are shards, Parquet files tables (with `column`), everything else is files, `size` of them in a unit.
    """
    if images.startswith(storage.SAMPLE_SCHEME):
        yield from _of_files(pictures.iterate(images), size)
    elif column is not None:
        for source in pictures.iterate(images, (".parquet",)):
            yield from _of_table(source, column, size)
    else:
        found = pictures.iterate(images, (*EXTENSIONS, ".tar"))
        for is_shard, run in itertools.groupby(found, lambda source: source.uri.lower().endswith(".tar")):
            if is_shard:
                yield from (Unit("shard", [source.uri], [f"{source.key}.tar"]) for source in run)
            else:
                yield from _of_files(run, size)


def _of_files(sources: Iterator[Source], size: int) -> Iterator[Unit]:
    while unit := list(itertools.islice(sources, size)):
        yield Unit("files", [s.uri for s in unit], [s.key for s in unit], pictures=len(unit))


def _of_table(source: Source, column: str, size: int) -> Iterator[Unit]:
    """Paths are dealt in runs of `size`; of bytes a row group is a unit: to come to a row, all before it are read."""
    try:
        with _open_table(source.uri) as table:
            if column not in table.schema_arrow.names:
                raise UsageError(f"{source.uri} has no column '{column}'; it has {', '.join(table.schema_arrow.names)}")
            kind = table.schema_arrow.field(column).type
            paths = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                step = size if paths else max(rows, 1)
                for first in range(0, rows, step):
                    yield Unit("table", [source.uri], [source.key], column, group, first, min(step, rows - first))
    except _NO_TABLE as error:
        raise UsageError(f"{source.uri} is no Parquet file ({error})") from None


def _open_table(uri: str) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_ranges(uri))


def write_plan(directory: str, units: Iterator[Unit]) -> Count:
    """Write units down as they come; no more than a file of them is in memory."""
    number, count, known = 0, 0, True
    for file in itertools.count():
        written = list(itertools.islice(units, UNITS_A_FILE))
        if not written:
            return Count(number, count if known else None)
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([unit._asdict() for unit in written], SCHEMA), buffer)
        storage.write_bytes(_plan_file(directory, file), buffer.getvalue(), storage.PATIENT_ATTEMPTS)
        number += len(written)
        count += sum(unit.pictures for unit in written)
        known &= all(unit.counted for unit in written)
    raise AssertionError


def read_units(directory: str, file: int) -> list[Unit]:
    """The units of one file of the plan."""
    data = storage.read_bytes(_plan_file(directory, file), storage.PATIENT_ATTEMPTS)
    return [Unit(**row) for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def read_unit(directory: str, number: int) -> Unit:
    """One unit of the plan, by its number."""
    file, place = divmod(number, UNITS_A_FILE)
    return read_units(directory, file)[place]


def _plan_file(directory: str, file: int) -> str:
    return storage.join(directory, f"{file:05d}.parquet")


def read_pictures(unit: Unit, every: int = 1) -> Iterator[Found]:
    """The files of a unit's pictures, or of each `every`-th, in order. What is not there or may not be read is said; a
    shard or a table that breaks off ends with that.

    Raises `JobError` where storage cannot be reached for long: that is no picture's fault.
    """
    if unit.keyed:
        chosen = itertools.islice(zip(unit.keys, unit.uris, strict=True), 0, None, every)
        yield from (_read(key, uri, uri) for key, uri in chosen)
    else:
        found = _rows(unit) if unit.kind == "table" else _members(unit)
        yield from itertools.islice(found, 0, None, every)


def read_picture(unit: Unit, key: str) -> Found | None:
    """One picture of a unit."""
    if unit.keyed:
        place = unit.keys.index(key)
        return _read(key, unit.uris[place], unit.uris[place])
    return next((found for found in read_pictures(unit) if found.key == key), None)


def _read(key: str, source: str, uri: str) -> Found:
    try:
        return Found(key, source, storage.read_bytes(uri, storage.PATIENT_ATTEMPTS))
    except FileNotFoundError:
        return Found(key, source, None, "there is no such file")
    except (OSError, ValueError) as error:  # no file, or nothing that could be the name of one
        return Found(key, source, None, str(error))


def _rows(unit: Unit) -> Iterator[Found]:
    (uri,), (prefix,) = unit.uris, unit.keys
    row = -1
    try:
        with _open_table(uri) as table:
            row = sum(table.metadata.row_group(i).num_rows for i in range(unit.group)) + unit.first
            batches = table.iter_batches(ROWS_AT_ONCE, row_groups=[unit.group], columns=[unit.column])
            values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
            for value in itertools.islice(values, unit.first, unit.first + unit.pictures):
                yield _cell(unit, f"{prefix}/{row:09d}", row, value.as_py())
                row += 1
    except FileNotFoundError:
        yield Found(f"{prefix}/-", uri, None, "there is no such file")
    except _NO_TABLE as error:
        yield Found(f"{prefix}/{row:09d}", uri, None, f"the table is broken from row {row} on: {error}")


def _cell(unit: Unit, key: str, row: int, value: Any) -> Found:
    (uri,) = unit.uris
    source = f"{uri}, row {row}"
    if isinstance(value, bytes):
        return Found(key, source, value)
    if isinstance(value, str):
        here = "://" in value or value.startswith("/")
        return _read(key, value, value if here else storage.join(uri.rpartition("/")[0], value))
    kind = "nothing" if value is None else type(value).__name__
    return Found(key, source, None, f"column '{unit.column}' holds {kind}, neither a path nor bytes")


def _members(unit: Unit) -> Iterator[Found]:
    """Pictures among a tar's members; the tar streams through."""
    (uri,), (prefix,) = unit.uris, unit.keys
    used: set[str] = set()
    key, source = f"{prefix}/-", uri
    try:
        with storage.open_ranges(uri, storage.CHUNK_BYTES) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.isfile() and info.name.lower().endswith(EXTENSIONS):
                    name = info.name.encode(errors="replace").decode()
                    wanted, source = f"{prefix}/{Keys().of(name)}", f"{uri}/{name}"
                    candidates = itertools.chain([wanted], (f"{wanted}-{n}" for n in itertools.count(2)))
                    key = next(candidate for candidate in candidates if candidate not in used)
                    used.add(key)
                    member = tar.extractfile(info)
                    assert member is not None
                    yield Found(key, source, member.read())
                    key, source = f"{prefix}/-", uri
            file.seek(tar.offset)  # a header that is damaged or cut short looks like the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"no header and no end at byte {tar.offset:,}")
    except FileNotFoundError:
        yield Found(key, source, None, "there is no such file")
    except (UsageError, tarfile.TarError) as error:
        yield Found(key, source, None, f"the shard is broken: {error}")


def nothing_at(images: str) -> str:
    """What to say where there are no units."""
    return (
        f"no pictures at {images} (looked for {', '.join(EXTENSIONS)} and .tar; for Parquet tables give --column with "
        "the column of paths or bytes)"
    )
