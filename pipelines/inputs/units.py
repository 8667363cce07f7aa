"""What a compression has to do, written down before it starts: units of pictures, each of which is done or not done.

    DIRECTORY/00000.parquet   a row a unit, `UNITS_A_FILE` of them in a file

A unit is some files, a shard of a WebDataset (any tar of pictures), or a run of rows of a Parquet table with a column
of paths or of the pictures' bytes. Planning reads names, and of tables their sizes; a unit's pictures are found when it
is its turn.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff.errors import JobError, UsageError
from corrdiff.images import EXTENSIONS
from corrdiff.uris import redacted, scheme
from pipelines.files import storage
from pipelines.files.retries import ATTEMPTS, NoCredentialsError
from pipelines.inputs import archives
from pipelines.inputs import sources as pictures
from pipelines.inputs.sources import Keys, Source

UNITS_A_FILE = 256
ROWS_AT_ONCE = 16
"""Of a table, that are in memory."""

_NO_TABLE = (pa.ArrowException, OSError)

Kind = Literal["files", "shard", "table"]

SCHEMA = pa.schema([
    ("kind", pa.string()), ("uris", pa.list_(pa.string())), ("keys", pa.list_(pa.string())), ("column", pa.string()),
    ("group", pa.int64()), ("first", pa.int64()), ("pictures", pa.int64()), ("problems", pa.list_(pa.string())),
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
    problems: list[str] = []  # noqa: RUF012  # a tuple's default, which nobody changes
    """Of each picture, why its name alone says that it cannot be read; none where none does."""

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
    files: tuple[str, ...]
    """SHA-256 of each file that says what it is."""


def plan_units(images: str, column: str | None, size: int, left_out: Counter[str] | None = None) -> Iterator[Unit]:
    """The units of what an argument names, as they are found.

    Tars, gzipped or not, are shards, Parquet files tables (with `column`), everything else is files, `size` of them in
    a unit. `left_out` is told, by reason, of the files that are there and in no unit.
    """
    if images.startswith(storage.SAMPLE_SCHEME):
        yield from _of_files(pictures.iterate(images), size)
    elif column is not None:
        for source in pictures.iterate(images, (".parquet",), left_out):
            yield from _of_table(source, column, size)
    else:
        found = pictures.iterate(images, (*EXTENSIONS, *archives.EXTENSIONS), left_out)
        for is_shard, run in itertools.groupby(
            found, lambda source: source.uri.lower().endswith(archives.EXTENSIONS) and not source.problem
        ):
            if is_shard:
                yield from (Unit("shard", [source.uri], [f"{source.key}.tar"]) for source in run)
            else:
                yield from _of_files(run, size)


def _of_files(sources: Iterator[Source], size: int) -> Iterator[Unit]:
    while unit := list(itertools.islice(sources, size)):
        problems = [s.problem for s in unit]
        yield Unit(
            "files", [s.uri for s in unit], [s.key for s in unit], pictures=len(unit),
            problems=problems if any(problems) else [],
        )  # fmt: skip


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
        raise UsageError(f"{source.uri} is no Parquet file ({str(error).splitlines()[0]})") from None


def _open_table(uri: str) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_ranges(uri))


def write_plan(directory: str, units: Iterator[Unit]) -> Count:
    """Write units down as they come; no more than a file of them is in memory."""
    number, count, known = 0, 0, True
    digests: list[str] = []
    for file in itertools.count():
        written = list(itertools.islice(units, UNITS_A_FILE))
        if not written:
            return Count(number, count if known else None, tuple(digests))
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([unit._asdict() for unit in written], SCHEMA), buffer)
        storage.write_bytes(_plan_file(directory, file), buffer.getvalue(), storage.PATIENT_ATTEMPTS)
        digests.append(hashlib.sha256(buffer.getvalue()).hexdigest())
        number += len(written)
        count += sum(unit.pictures for unit in written)
        known &= all(unit.counted for unit in written)
    raise AssertionError


def remove_plan(directory: str, count: Count) -> None:
    """Remove what `write_plan` wrote."""
    for file in range(len(count.files)):
        storage.remove_file(_plan_file(directory, file))
    storage.remove_empty(directory)


class PlannedUnits(NamedTuple):
    """Where units are written down."""

    directory: str
    files: tuple[str, ...] = ()
    """SHA-256 of each file; none of a plan of an older version."""


def read_units(planned: PlannedUnits, file: int) -> list[Unit]:
    """The units of one file of the plan. Raises `JobError` where it is missing or is not what was written."""
    uri = _plan_file(planned.directory, file)
    try:
        data = storage.read_bytes(uri, storage.PATIENT_ATTEMPTS)
        if planned.files and hashlib.sha256(data).hexdigest() != planned.files[file]:
            raise JobError(f"{uri} is damaged: its SHA-256 is not the plan's")
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
        return [Unit(**{name: value for name, value in row.items() if value is not None}) for row in rows]
    except FileNotFoundError:
        raise JobError(f"{uri} is missing, which says what is to be compressed") from None
    except (*_NO_TABLE, TypeError, ValueError) as error:
        raise JobError(f"{uri} is damaged ({type(error).__name__})") from None


def read_unit(planned: PlannedUnits, number: int) -> Unit:
    """One unit of the plan, by its number. Raises as `read_units`."""
    file, place = divmod(number, UNITS_A_FILE)
    return read_units(planned, file)[place]


def _plan_file(directory: str, file: int) -> str:
    return storage.join(directory, f"{file:05d}.parquet")


def read_pictures(unit: Unit, every: int = 1, left_out: Counter[str] | None = None) -> Iterator[Found]:
    """The files of a unit's pictures, or of each `every`-th, in order. What is not there or may not be read is said; a
    shard or a table that breaks off ends with that.

    `left_out` is told, by reason, of what is in a shard and is no picture.

    Raises `JobError` where storage cannot be reached for long: that is no picture's fault. A web address is a picture's
    own: whatever its host answers, or that there is none, is said of that picture.
    """
    if unit.keyed:
        problems = unit.problems or itertools.repeat("")
        chosen = itertools.islice(zip(unit.keys, unit.uris, problems, strict=False), 0, None, every)
        yield from (_read(key, uri, uri, problem) for key, uri, problem in chosen)
    else:
        found = _rows(unit) if unit.kind == "table" else _members(unit, Counter() if left_out is None else left_out)
        yield from itertools.islice(found, 0, None, every)


def read_picture(unit: Unit, key: str) -> Found | None:
    """One picture of a unit."""
    if unit.keyed:
        place = unit.keys.index(key)
        return _read(key, unit.uris[place], unit.uris[place], unit.problems[place] if unit.problems else "")
    return next((found for found in read_pictures(unit) if found.key == key), None)


def _read(key: str, source: str, uri: str, problem: str = "") -> Found:
    source = redacted(source)
    if problem:
        return Found(key, source, None, problem)
    web = scheme(uri) in ("http", "https")
    try:
        return Found(key, source, storage.read_bytes(uri, ATTEMPTS if web else storage.PATIENT_ATTEMPTS))
    except FileNotFoundError:
        return Found(key, source, None, "there is no such file")
    except NoCredentialsError:
        raise
    except (OSError, ValueError) as error:  # no file, or nothing that could be the name of one
        return Found(key, source, None, _reason(error))
    except JobError as error:
        if not web:
            raise
        return Found(key, source, None, _reason(error.__cause__ or error))


def _reason(error: BaseException) -> str:
    """Why a file cannot be read, without its name, which stands beside it: failures are counted by reason."""
    status = getattr(error, "status", None)
    if status is not None:
        return f"the server answers {status}"
    if isinstance(error, UsageError):
        return "reading it is not permitted" if isinstance(error.__cause__, PermissionError) else redacted(str(error))
    if isinstance(error, OSError) and error.strerror and type(error).__module__ == "builtins":
        return error.strerror
    if isinstance(error, storage.NotAFileError):
        return str(error.strerror)
    return f"it cannot be read ({type(error).__name__})" if not isinstance(error, ValueError) else redacted(str(error))


def _rows(unit: Unit) -> Iterator[Found]:
    """As many rows as were planned, whatever has become of the table."""
    (uri,), (prefix,) = unit.uris, unit.keys
    source, done, first = redacted(uri), 0, unit.first
    reason = "there is no such row any more"
    try:
        with _open_table(uri) as table:
            if unit.column not in table.schema_arrow.names:
                raise UsageError(f"the table has no column '{unit.column}' any more")
            first = sum(table.metadata.row_group(i).num_rows for i in range(unit.group)) + unit.first
            batches = table.iter_batches(ROWS_AT_ONCE, row_groups=[unit.group], columns=[unit.column])
            values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
            for value in itertools.islice(values, unit.first, unit.first + unit.pictures):
                found = _cell(unit, f"{prefix}/{first + done:09d}", first + done, value.as_py())
                done += 1
                yield found
    except FileNotFoundError:
        reason = "there is no such file"
    except UsageError as error:
        reason = str(error)
    except (*_NO_TABLE, IndexError) as error:
        reason = f"the table is broken ({type(error).__name__})"
    for row in range(first + done, first + unit.pictures):
        yield Found(f"{prefix}/{row:09d}", f"{source}, row {row}", None, reason)


def _cell(unit: Unit, key: str, row: int, value: Any) -> Found:
    """A picture's bytes, its path or URI, or both of them in a struct, as Hugging Face writes it."""
    (uri,) = unit.uris
    source = f"{redacted(uri)}, row {row}"
    if isinstance(value, dict):
        value = next((value[name] for name in ("bytes", "path") if value.get(name) is not None), None)
    if isinstance(value, bytes):
        return Found(key, source, value)
    if isinstance(value, str):
        here = scheme(value) or value.startswith("/")
        return _read(key, value, value if here else storage.join(uri.rpartition("/")[0], value))
    kind = "nothing" if value is None else type(value).__name__
    return Found(key, source, None, f"column '{unit.column}' holds {kind}, neither a path nor bytes")


def _members(unit: Unit, left_out: Counter[str]) -> Iterator[Found]:
    """Pictures among a tar's members; the tar streams through."""
    (uri,), (prefix,) = unit.uris, unit.keys
    used: set[str] = set()
    key, source = f"{prefix}/-", redacted(uri)
    try:
        with storage.open_ranges(uri, storage.CHUNK_BYTES) as file:
            for member in archives.members(file, uri):
                name = member.name.encode(errors="replace").decode()
                reason = pictures.left_out_as(member.name, EXTENSIONS) or member.left_out
                if reason:
                    left_out[reason] += 1
                    continue
                wanted, source = f"{prefix}/{Keys().of(member.name)}", f"{redacted(uri)}/{name}"
                candidates = itertools.chain([wanted], (f"{wanted}-{n}" for n in itertools.count(2)))
                key = next(candidate for candidate in candidates if candidate not in used)
                used.add(key)
                yield Found(key, source, member.read())
                key, source = f"{prefix}/-", redacted(uri)
    except FileNotFoundError:
        yield Found(key, source, None, "there is no such file")
    except UsageError as error:
        yield Found(key, source, None, f"the shard is broken: {error}")
    except OSError as error:
        yield Found(key, source, None, f"the shard cannot be read: {_reason(error)}")


def nothing_at(images: str, left_out: Mapping[str, int] = MappingProxyType({})) -> str:
    """What to say where there are no units."""
    return (
        f"no pictures at {images}{pictures.left_out_sentence(left_out)} (looked for "
        f"{', '.join((*EXTENSIONS, *archives.EXTENSIONS))}; for Parquet tables give --column with "
        "the column of paths or bytes)"
    )
