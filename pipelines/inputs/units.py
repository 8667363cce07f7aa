"""What a job is to do, written down before it starts: units of pictures, each of which is done or not done.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff.errors import JobError, UsageError
from corrdiff.images import EXTENSIONS
from pipelines.files import storage
from pipelines.inputs import archives
from pipelines.inputs import sources as pictures
from pipelines.inputs.samples import NONE, NOTHING, Allowance, Fields, Travels, read_file, read_sidecars
from pipelines.inputs.samples import Found as Found
from pipelines.inputs.samples import Kind as Kind
from pipelines.inputs.samples import Unit as Unit
from pipelines.inputs.sources import Source
from pipelines.inputs.tables import NO_TABLE, plan_table, read_table
from pipelines.inputs.tars import read_tar

UNITS_A_FILE = 256

SCHEMA = pa.schema([
    ("kind", pa.string()), ("uris", pa.list_(pa.string())), ("keys", pa.list_(pa.string())), ("column", pa.string()),
    ("group", pa.int64()), ("first", pa.int64()), ("pictures", pa.int64()), ("problems", pa.list_(pa.string())),
    ("names", pa.list_(pa.string())), ("picture", pa.string()), ("sidecars", pa.list_(pa.list_(pa.string()))),
    ("schema", pa.binary()), ("marks", pa.list_(pa.int64())), ("again", pa.list_(pa.string())),
    ("units", pa.list_(pa.int64())),
])  # fmt: skip


class Count(NamedTuple):
    """How much there is to do."""

    units: int
    pictures: int | None
    """None where shards are among them."""
    files: tuple[str, ...]
    """SHA-256 of each file that says what it is."""
    again: int = 0
    """Failures that are tried again."""


def plan_units(
    images: str, column: str | None, size: int, left_out: Counter[str] | None = None, travels: Travels = NOTHING,
    only: Callable[[Iterator[Source]], Iterator[Source]] = iter,
) -> Iterator[Unit]:  # fmt: skip
    """The units of what an argument names, as they are found.

    Tars, gzipped or not, are shards, Parquet files tables (with `column`), everything else is files, `size` of them in
    a unit. `left_out` is told, by reason, of the files that are there and in no unit. `travels` says what is kept
    beside the pictures, `only` which sources of those that are found.

    Raises `UsageError` for a `--picture` that is no ending of a picture.
    """
    if travels.picture and not f".{travels.picture}".endswith(EXTENSIONS):
        raise UsageError(f"--picture must be the ending of a picture, as jpg or left.png, not '{travels.picture}'")
    if images.startswith(storage.SAMPLE_SCHEME):
        yield from of_files(only(pictures.iterate(images)), size, travels)
    elif column is not None:
        for source in only(pictures.iterate(images, (".parquet",), left_out)):
            yield from plan_table(source, column, size, travels)
    else:
        taken = (*travels.extensions(EXTENSIONS), *archives.EXTENSIONS)
        found = only(pictures.iterate(images, taken, left_out, travels))
        for is_shard, run in itertools.groupby(
            found, lambda source: source.uri.lower().endswith(archives.EXTENSIONS) and not source.problem
        ):
            if is_shard:
                yield from (_of_shard(source, travels) for source in run)
            else:
                yield from of_files(run, size, travels)


def _of_shard(source: Source, travels: Travels) -> Unit:
    names = [] if travels.names == (NONE,) else list(travels.names)
    return Unit("shard", [source.uri], [f"{source.key}.tar"], names=names, picture=travels.picture, marks=[source.mark])


def of_files(sources: Iterator[Source], size: int, travels: Travels) -> Iterator[Unit]:
    """Units of files, `size` of them in each."""
    while unit := list(itertools.islice(sources, size)):
        problems, sidecars = [s.problem for s in unit], [list(s.sidecars) for s in unit]
        yield Unit(
            "files", [s.uri for s in unit], [s.key for s in unit], pictures=len(unit),
            problems=problems if any(problems) else [], picture=travels.picture,
            sidecars=sidecars if any(sidecars) else [], marks=[s.mark for s in unit],
        )  # fmt: skip


def write_plan(directory: str, units: Iterator[Unit]) -> Count:
    """Write units down as they come; no more than a file of them is in memory."""
    number, count, again, known = 0, 0, 0, True
    digests: list[str] = []
    for file in itertools.count():
        written = list(itertools.islice(units, UNITS_A_FILE))
        if not written:
            return Count(number, count if known else None, tuple(digests), again)
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([unit._asdict() for unit in written], SCHEMA), buffer)
        storage.write_bytes(_plan_file(directory, file), buffer.getvalue(), storage.PATIENT_ATTEMPTS)
        digests.append(hashlib.sha256(buffer.getvalue()).hexdigest())
        number += len(written)
        count += sum(unit.expected for unit in written)
        again += sum(len(unit.again) for unit in written)
        known &= all(unit.counted for unit in written)
    raise AssertionError


class PlannedUnits(NamedTuple):
    """Where units are written down."""

    directory: str
    files: tuple[str, ...] = ()
    """SHA-256 of each file; none of a plan of an older version."""
    first: int = 0
    """The number of its first unit."""


def remove_plan(planned: PlannedUnits) -> None:
    """Remove what `write_plan` wrote."""
    for file in range(len(planned.files)):
        storage.remove_file(_plan_file(planned.directory, file))
    storage.remove_empty(planned.directory)


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
    except (*NO_TABLE, TypeError, ValueError) as error:
        raise JobError(f"{uri} is damaged ({type(error).__name__})") from None


def read_unit(
    planned: Sequence[PlannedUnits], number: int, read: Callable[[PlannedUnits, int], list[Unit]] = read_units
) -> Unit:
    """One unit of a plan that may have grown, by its number; `read` may be a `read_units` that remembers.

    Raises as `read_units`.
    """
    stage = next(each for each in reversed(planned) if each.first <= number)
    file, place = divmod(number - stage.first, UNITS_A_FILE)
    return read(stage, file)[place]


def all_units(planned: PlannedUnits, count: int) -> Iterator[Unit]:
    """So many units that are written down, in their order, a file of them in memory. Raises as `read_units`."""
    for file in range(-(-count // UNITS_A_FILE)):
        yield from read_units(planned, file)


def _plan_file(directory: str, file: int) -> str:
    return storage.join(directory, f"{file:05d}.parquet")


def read_pictures(unit: Unit, every: int = 1, left_out: Counter[str] | None = None) -> Iterator[Found]:
    """The files of a unit's pictures, or of each `every`-th, in order, and what travels with them. What is not there or
    may not be read is said; a shard or a table that breaks off ends with that.

    `left_out` is told, by reason, of what is in a shard or beside a picture, is no picture, and does not travel.

    Raises `JobError` where storage cannot be reached for long: that is no picture's fault. A web address is a picture's
    own: whatever its host answers, or that there is none, is said of that picture.
    """
    told = Counter() if left_out is None else left_out
    if unit.keyed:
        yield from _files(unit, every, told)
    else:
        found = read_table(unit) if unit.kind == "table" else read_tar(unit, told)
        yield from itertools.islice(found, 0, None, every)


def _files(unit: Unit, every: int, left_out: Counter[str]) -> Iterator[Found]:
    problems = unit.problems or itertools.repeat("")
    sidecars = unit.sidecars or itertools.repeat(list[str]())
    allowance = Allowance()
    each = zip(unit.keys, unit.uris, problems, sidecars, strict=False)
    for key, uri, problem, endings in itertools.islice(each, 0, None, every):
        found = read_file(key, uri, uri, problem)
        stem = unit.travels.beside(uri)
        fields = read_sidecars(stem, endings, allowance, left_out) if stem and endings else Fields()
        yield found._replace(fields=fields)


def read_picture(unit: Unit, key: str) -> Found | None:
    """One picture of a unit; of files without what travels with it."""
    if unit.keyed:
        place = unit.keys.index(key)
        return read_file(key, unit.uris[place], unit.uris[place], unit.problems[place] if unit.problems else "")
    return next((found for found in read_pictures(unit) if found.key == key), None)


def nothing_at(images: str, left_out: Mapping[str, int] = MappingProxyType({})) -> str:
    """What to say where there are no units."""
    return (
        f"no pictures at {images}{pictures.left_out_sentence(left_out)} (looked for "
        f"{', '.join((*EXTENSIONS, *archives.EXTENSIONS))}; for Parquet tables give --column with "
        "the column of paths or bytes)"
    )
