"""What a compressed dataset is, and reading it.

    OUT/plan.json                  the codec, the settings and how many units; the first one that is written counts
    OUT/rate.json                  with a target, the rule by which each picture finds its quality
    OUT/_plan/...                  which pictures belong to which unit (inputs/units.py)
    OUT/part-00000-<hash>.tar      WebDataset: KEY.crdf, KEY.crdf.json, and the files that travel with it (fields.py)
    OUT/part-00000-<hash>.parquet  a row for each picture, failures too, and the columns that travel with it
    OUT/_writing/00000-...         written before a unit's files: that this compression writes them
    OUT/_units/00000.json          written after them: names, sizes and hashes of the unit's files
    OUT/_index/keys.parquet        written at the end: where each picture's file is, sorted by key
    OUT/summary.json               written last: totals, percentiles, failures (summary.py)

Files are named by their content, and the first record of a unit counts. So doing a unit twice is harmless, whoever does
it, and files that no record names count for nothing. What a worker wrote in vain is removed at the end; what was there
before is neither written over nor removed, whatever it is called.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff.errors import JobError, UsageError
from pipelines.files import records, storage
from pipelines.files.storage import READERS
from pipelines.files.tar import read_samples
from pipelines.inputs.samples import DESCRIPTION, OURS, PICTURE, Fields

PLAN, RATE, SUMMARY, INDEX = "plan.json", "rate.json", "summary.json", "_index/keys.parquet"
PLANS, WRITING, UNITS = "_plan", "_writing", "_units"
FORMAT = "corrdiff-dataset-1"

INDEX_COLUMNS = ("key", "part", "offset", "bytes")
INDEX_GROUP_ROWS = 1 << 14
PART_DIGITS = 12

TRAVELLED = b"corrdiff.column"
"""In the metadata of a column of a part's table: what it was called in the table that it is from."""

_FIRST_METRICS = ("psnr_db", "ms_ssim", "lpips")
"""These come first among the columns, in this order; what else is measured follows in the order of its own table."""


def metric_columns() -> tuple[str, ...]:
    """The columns that say how good a picture is at what rate, in their order: what is summarised and drawn."""
    from corrdiff.metrics import DATASET_METRICS  # it brings torch along, which reading and writing parts do without

    names = [metric.name for metric in DATASET_METRICS]
    return ("bpp", *(n for n in _FIRST_METRICS if n in names), *(n for n in names if n not in _FIRST_METRICS))


def columns() -> pa.Schema:
    """A row for each picture; `part` and `offset` say where its file begins, `bytes` its length.

    What could not be computed is null.
    """
    return pa.schema([
        ("key", pa.string()), ("source", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
        ("bytes", pa.int64()), *((name, pa.float64()) for name in metric_columns()), ("quality", pa.float64()),
        ("quality_source", pa.string()), ("status", pa.string()), ("error", pa.string()), ("part", pa.string()),
        ("offset", pa.int64()),
    ])  # fmt: skip


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


@dataclass(frozen=True)
class Plan:
    """What a compressed dataset is to be."""

    identity: dict[str, Any]
    """Codec, pictures and settings: what makes two compressions the same."""
    directory: str
    """Of the units' descriptions, under OUT."""
    units: int
    pictures: int | None
    """None where tars are among the input, which are not opened before their turn."""
    files: tuple[str, ...] = ()
    """SHA-256 of each file of the units' descriptions; none of a dataset of an older version."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> files that were found and not taken."""


class Member(NamedTuple):
    """Where one picture's file is."""

    key: str
    part: str
    offset: int
    bytes: int


class PictureFile(NamedTuple):
    """A compressed picture, as it lies in a part, and what travels with it."""

    key: str
    data: bytes
    fields: Fields = Fields()


def part_name(unit: int, extension: str, sha256: str) -> str:
    """The name of a part or its table, by its content."""
    return f"part-{unit:05d}-{sha256[:PART_DIGITS]}.{extension}"


_PART = re.compile(rf"part-(\d{{5,}})-[0-9a-f]{{{PART_DIGITS}}}\.(tar|parquet)")


def strange_names(names: Iterable[str]) -> list[str]:
    """Of the names in a directory without a plan, those that a compression would take for its own."""
    ours = {RATE, SUMMARY, WRITING, UNITS, INDEX.partition("/")[0]}
    return [name for name in names if name in ours or _PART.fullmatch(name)]


def begin_unit(uri: str, unit: int, parts: Sequence[str]) -> None:
    """Say, before a unit's files are written, that this compression writes those that are not there yet."""
    marker = storage.join(uri, WRITING, f"{unit:05d}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}.json")
    if not storage.exists(marker):
        new = [name for name in parts if not storage.exists(storage.join(uri, name))]
        storage.create_bytes(marker, storage.sealed({"parts": new}))


def remove_orphans(uri: str, records: Iterable[Record]) -> None:
    """Remove what workers of this compression began to write, by their own word, and no record names."""
    named = {file.name for record in records for file in (record.tar, record.parquet)}
    for marker in storage.list_names(storage.join(uri, WRITING)):
        where = storage.join(uri, WRITING, marker)
        for name in storage.read_json(where)["parts"]:
            if _PART.fullmatch(name) and name not in named:
                storage.remove_file(storage.join(uri, name))
        storage.remove_file(where)
    storage.remove_empty(storage.join(uri, WRITING))


def missing_parts(uri: str, records: Iterable[Record]) -> list[str]:
    """Files that records name and that are not there."""
    there = set(storage.list_names(uri))
    return [file.name for record in records for file in (record.tar, record.parquet) if file.name not in there]


def units_without_part(uri: str, units: int) -> list[int]:
    """Numbers of the units of a finished dataset of which no tar, or no table, is there; by the names alone."""
    found = filter(None, map(_PART.fullmatch, storage.list_names(uri)))
    there = {(int(name[1]), name[2]) for name in found}
    return [unit for unit in range(units) if not {(unit, "tar"), (unit, "parquet")} <= there]


def read_plan(uri: str) -> Plan | None:
    """The plan of a dataset, or None where nothing was begun. Raises `UsageError` where it is not readable."""
    try:
        value = storage.read_json(storage.join(uri, PLAN))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _plan(value, uri)


def claim_plan(uri: str, plan: Plan, absent: Mapping[str, Any] | None = None) -> Plan:
    """Make a plan that of a directory: returns the one that counts, which is an earlier one where there is one.

    `absent` stands for the parts of an identity that an older plan does not name.

    Raises `UsageError` where that is another compression's.
    """
    value = {"format": FORMAT, **dataclasses.asdict(plan)}
    return _plan(records.claim(storage.join(uri, PLAN), value, f"{uri} holds another compression", absent=absent), uri)


def _plan(value: Any, uri: str) -> Plan:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{uri}/{PLAN} is of no format that this program reads ({FORMAT})")
    return records.to_record({k: v for k, v in value.items() if k != "format"}, Plan, f"{uri}/{PLAN}")


def check_codec(uri: str, plan: Plan, codec: str, fingerprint: str) -> None:
    """Raises `UsageError` where another codec wrote the dataset."""
    wrote = plan.identity["codec"]
    if wrote != fingerprint:
        raise UsageError(
            f"{uri} was compressed by codec {wrote[:16]}, but {codec} is {fingerprint[:16]}; "
            "give the codec that wrote it"
        )


def record_uri(uri: str, unit: int) -> str:
    """Where the record of a unit is, once the unit is done."""
    return storage.join(uri, UNITS, f"{unit:05d}.json")


def read_record(uri: str, unit: int) -> Record:
    """The record of a unit that is done. Raises `UsageError` where it is damaged."""
    return records.read_record(record_uri(uri, unit), Record)


def create_record(uri: str, record: Record) -> Record:
    """Write a unit's record; returns the one that counts, which is an earlier one where there is one."""
    created = storage.create_bytes(record_uri(uri, record.unit), storage.sealed(dataclasses.asdict(record)))
    return record if created else read_record(uri, record.unit)


_RECORD = re.compile(r"\d{5,}\.json")


def finished_units(uri: str) -> list[int]:
    """Numbers of the units that are done."""
    return [int(n.removesuffix(".json")) for n in storage.list_names(storage.join(uri, UNITS)) if _RECORD.fullmatch(n)]


def read_records(uri: str, units: Iterable[int]) -> Iterator[Record]:
    """The records of some units, in their order; many are read at the same time."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(lambda unit: read_record(uri, unit), units)


def find(uri: str, keys: Sequence[str]) -> list[Member]:
    """Where the files of some pictures are; reads only the parts of the index that may name them.

    Raises `UsageError` where a key is not there.
    """
    if not keys:
        return []
    try:
        with storage.open_ranges(storage.join(uri, INDEX)) as file:
            rows = pq.read_table(
                file, columns=list(INDEX_COLUMNS), filters=[("key", "in", list(keys))], page_checksum_verification=True
            ).to_pylist()
    except FileNotFoundError:
        raise UsageError(f"{uri} has no index: the compression is not complete; run it again") from None
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise _damaged_index(uri, error) from None
    found = {row["key"]: Member(**row) for row in rows}
    missing = [key for key in keys if key not in found]
    if missing:
        raise UsageError(f"{uri} has no compressed picture '{missing[0]}' ({len(missing)} of {len(keys)} are missing)")
    return [found[key] for key in keys]


def all_keys(uri: str) -> Iterator[str]:
    """The keys of all compressed pictures, a few at a time in memory. Raises `UsageError` where there is no index."""
    try:
        with storage.open_ranges(storage.join(uri, INDEX)) as file:
            index = pq.ParquetFile(file, page_checksum_verification=True)
            for batch in index.iter_batches(columns=["key"]):
                yield from batch.column(0).to_pylist()
    except FileNotFoundError:
        raise UsageError(f"{uri} has no index: the compression is not complete; run it again") from None
    except (pa.ArrowException, OSError, IndexError, UnicodeDecodeError) as error:
        raise _damaged_index(uri, error) from None


def _damaged_index(uri: str, error: Exception) -> UsageError:
    return UsageError(f"{uri}/{INDEX} is damaged ({type(error).__name__}); copy it again")


def read_member(uri: str, member: Member) -> bytes:
    """A picture's file: its bytes of the part and no others. Raises `JobError` where they are not there."""
    name = storage.join(uri, member.part)
    try:
        return storage.read_range(name, member.offset, member.offset + member.bytes)
    except FileNotFoundError:
        raise JobError(f"part {name} is missing; copy it again") from None


def read_part(uri: str, record: Record) -> list[PictureFile]:
    """All pictures of a part, and the files that travel with them. Raises `JobError` where it is not what was
    written."""
    data = _read_recorded("part", storage.join(uri, record.tar.name), record.tar.sha256)
    return [PictureFile(key, m[PICTURE], _travelled(m)) for key, m in read_samples(data) if PICTURE in m]


def _travelled(members: Mapping[str, bytes]) -> Fields:
    """What travels of the files of a sample; of an older version's, where `json` was the dataset's own, nothing."""
    return Fields(tuple(m for m in members.items() if m[0] not in OURS)) if DESCRIPTION in members else Fields()


def read_rows(uri: str, record: Record, every_column: bool = False) -> pa.Table:
    """The table of a part, without the columns that travel with the pictures unless they are asked for.

    Raises `JobError` where it is not what was written.
    """
    data = _read_recorded("the table", storage.join(uri, record.parquet.name), record.parquet.sha256)
    if every_column:
        return pq.read_table(io.BytesIO(data))
    own = [field.name for field in pq.read_schema(io.BytesIO(data)) if TRAVELLED not in (field.metadata or {})]
    return pq.read_table(io.BytesIO(data), columns=own).select(own)


def _read_recorded(what: str, name: str, sha256: str) -> bytes:
    """Read a file that a record names. Raises `JobError`, saying what it is, where it is not what was written."""
    try:
        data = storage.read_bytes(name, storage.PATIENT_ATTEMPTS)
    except FileNotFoundError:
        raise JobError(f"{what} {name} is missing; copy it again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise JobError(f"{what} {name} is damaged: its SHA-256 is not the record's; copy it again")
    return data
