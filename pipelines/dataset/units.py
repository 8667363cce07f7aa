"""Which units of a compressed dataset are done: a record for each, many records in a bundle.

    OUT/_units/00007.json         what a unit's files are called, how long they are, and their hashes; the first one
                                  that is written counts
    OUT/_units/00000-00255.parquet   the same of many units in a row, each as it was in its file, which is gone then

So a job that goes on, or a reader, opens some hundreds of files where there are a million units.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff.errors import JobError, UsageError
from pipelines.dataset.format import PART, UNITS, WRITING
from pipelines.files import records, storage

BUNDLE_UNITS = 1 << 8
"""Whose records are in one bundle."""

SIZES = (1, BUNDLE_UNITS, 1 << 14)
"""Units whose records are in one file: of one unit, of a bundle, and of one that takes the place of many bundles."""

GROUP_UNITS = 1 << 8
"""Of a bundle, that are read together where one is wanted."""

AT_ONCE = 1 << 12
"""Records that are in memory."""


@dataclass(frozen=True)
class File:
    """One file of a unit."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """A unit that is done."""

    unit: int
    tar: File
    parquet: File
    pictures: int
    failures: int
    bytes: int
    """Of all compressed pictures."""
    pixels: int
    seconds: dict[str, float]
    """What each stage took."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> what was found in a tar, or beside a picture, and not taken."""
    members: int = 0
    """Files that travel with the pictures: of what was found, these are neither pictures nor left out."""


class _File(NamedTuple):
    """A file of the records of units that follow each other: of one unit, or a bundle."""

    first: int
    units: int

    @property
    def name(self) -> str:
        last = f"-{self.first + self.units - 1:05d}.parquet" if self.units > 1 else ".json"
        return f"{self.first:05d}{last}"

    @classmethod
    def of(cls, unit: int, count: int) -> _File:
        """The one of so many units that a unit may be in."""
        return cls(unit - unit % count, count)


_NAME = re.compile(r"(\d{5,})(?:\.json|-(\d{5,})\.parquet)")


def _files(uri: str) -> set[_File]:
    """What there is; names that none of ours has are none."""
    named = filter(None, map(_NAME.fullmatch, storage.list_names(storage.join(uri, UNITS))))
    found = {_File(int(name[1]), int(name[2] or name[1]) - int(name[1]) + 1) for name in named}
    return {file for file in found if file.units in SIZES and file.first % file.units == 0}


def _file_of(unit: int, files: set[_File]) -> _File:
    """The largest with the record of a unit; that of its own where there is none."""
    may_be = (_File.of(unit, count) for count in reversed(SIZES))
    return next((file for file in may_be if file in files), _File(unit, 1))


def record_uri(uri: str, unit: int) -> str:
    """Where the record of a unit is, once the unit is done, until it is in a bundle."""
    return storage.join(uri, UNITS, _File(unit, 1).name)


def create_record(uri: str, record: Record) -> Record:
    """Write a unit's record; returns the one that counts, which is an earlier one where there is one."""
    place = record_uri(uri, record.unit)
    created = storage.create_bytes(place, storage.sealed(dataclasses.asdict(record)))
    # A bundle is there before the records in it go: what was created although there is one came too late.
    bundles = [_File.of(record.unit, count).name for count in SIZES[1:]]
    bundled = any(storage.exists(storage.join(uri, UNITS, name)) for name in bundles)
    if created and bundled:
        storage.remove_file(place)
    return record if created and not bundled else read_record(uri, record.unit)


def finished_units(uri: str) -> list[int]:
    """Numbers of the units that are done, in order."""
    return sorted({unit for file in _files(uri) for unit in range(file.first, file.first + file.units)})


def read_record(uri: str, unit: int) -> Record:
    """The record of a unit that is done. Raises as `read_records`."""
    return next(read_records(uri, [unit]))


def read_records(uri: str, units: Iterable[int]) -> Iterator[Record]:
    """The records of some units, in their order; many are read at the same time.

    Raises:
        UsageError: one is damaged.
        JobError: one is not there.
    """
    numbers, files = iter(units), None
    while some := list(itertools.islice(numbers, AT_ONCE)):
        files = files or _files(uri)
        try:
            found = _read(uri, some, files)
        except FileNotFoundError:  # what was there by itself is in a bundle by now
            files = _files(uri)
            try:
                found = _read(uri, some, files)
            except FileNotFoundError:
                missing = next((unit for unit in some if _file_of(unit, files) not in files), some[0])
                raise JobError(f"{record_uri(uri, missing)} is missing, which says that a unit is done") from None
        yield from found


def _read(uri: str, units: Sequence[int], files: set[_File]) -> list[Record]:
    """Raises `FileNotFoundError` where the record of one is not where it should be."""
    by_file: dict[_File, list[int]] = {}
    for unit in sorted(set(units)):
        by_file.setdefault(_file_of(unit, files), []).append(unit)
    found: dict[int, Record] = {}
    with ThreadPoolExecutor(storage.READERS) as pool:
        for some in pool.map(lambda file: _read_file(uri, file, by_file[file]), by_file):
            found |= some
    return [found[unit] for unit in units]


def _read_file(uri: str, file: _File, units: Sequence[int]) -> dict[int, Record]:
    """Some records of a file; in a bundle, the row of a unit is the unit's place."""
    place = storage.join(uri, UNITS, file.name)
    if file.units == 1:
        return {file.first: records.read_record(place, Record)}
    found: dict[int, Record] = {}
    try:
        with storage.open_ranges(place) as opened:
            table = pq.ParquetFile(opened, page_checksum_verification=True)
            for group, run in itertools.groupby(units, lambda unit: (unit - file.first) // GROUP_UNITS):
                rows = table.read_row_group(group)["record"]
                for unit in run:
                    data = rows[(unit - file.first) % GROUP_UNITS].as_py()
                    found[unit] = records.to_record(storage.unsealed(data, place), Record, place)
                    if found[unit].unit != unit:
                        raise UsageError(f"{place} is damaged: it has unit {found[unit].unit} in the place of {unit}")
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, IndexError, KeyError, TypeError) as error:
        raise UsageError(f"{place} is damaged ({type(error).__name__}); copy it again") from None
    return found


def bundle_records(uri: str) -> None:
    """Put the records of many units in a row into one file, wherever all of them are done.

    Whoever dies in the midst of it, and whoever else does the same: each record is there all the time.
    """
    for smaller, count in itertools.pairwise(SIZES):
        files = [file for file in _files(uri) if file.units == smaller]
        together = Counter(_File.of(file.first, count) for file in files)
        for bundle, number in sorted(together.items()):
            if number == count // smaller:
                _bundle(uri, bundle, smaller)


def _bundle(uri: str, bundle: _File, smaller: int) -> None:
    units = range(bundle.first, bundle.first + bundle.units)
    rows = [storage.sealed(dataclasses.asdict(record)) for record in read_records(uri, units)]
    buffer = io.BytesIO()
    table = pa.table({"record": pa.array(rows, pa.binary())})
    pq.write_table(table, buffer, row_group_size=GROUP_UNITS, write_page_checksum=True, compression="zstd")
    storage.create_bytes(storage.join(uri, UNITS, bundle.name), buffer.getvalue())
    with ThreadPoolExecutor(storage.READERS) as pool:
        names = [_File(first, smaller).name for first in units[::smaller]]
        list(pool.map(lambda name: storage.remove_file(storage.join(uri, UNITS, name)), names))


def _marker_uri(uri: str, unit: int, parts: Sequence[str]) -> str:
    """Where it is said that a unit's files are being written."""
    digest = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
    return storage.join(uri, WRITING, f"{unit:05d}-{digest}.json")


def begin_unit(uri: str, unit: int, parts: Sequence[str]) -> None:
    """Say, before a unit's files are written, that this compression writes those that are not there yet."""
    marker = _marker_uri(uri, unit, parts)
    if not storage.exists(marker):
        new = [name for name in parts if not storage.exists(storage.join(uri, name))]
        storage.create_bytes(marker, storage.sealed({"parts": new}))


def end_unit(uri: str, record: Record) -> None:
    """Take back what `begin_unit` said of files that their record names: they are no orphans."""
    storage.remove_file(_marker_uri(uri, record.unit, [record.tar.name, record.parquet.name]))


def remove_orphans(uri: str) -> None:
    """Remove what workers of this compression began to write, by their own word, and no record names."""
    files = _files(uri)
    for marker in storage.list_names(storage.join(uri, WRITING)):
        where, unit = storage.join(uri, WRITING, marker), int(marker.partition("-")[0])
        named: set[str] = set()
        if _file_of(unit, files) in files:
            record = read_record(uri, unit)
            named = {record.tar.name, record.parquet.name}
        for name in storage.read_json(where)["parts"]:
            if PART.fullmatch(name) and name not in named:
                storage.remove_file(storage.join(uri, name))
        storage.remove_file(where)
    storage.remove_empty(storage.join(uri, WRITING))


def missing_parts(uri: str, records: Iterable[Record]) -> list[str]:
    """Files that records name and that are not there."""
    there = set(storage.list_names(uri))
    return [file.name for record in records for file in (record.tar, record.parquet) if file.name not in there]
