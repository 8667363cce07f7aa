"""What a compressed dataset is, and reading it.

    OUT/plan.json                  the codec, the settings and how many units; the first one that is written counts
    OUT/rate.json                  with a target, the rule by which each picture finds its quality (target.py)
    OUT/_plan/...                  which pictures belong to which unit (units.py)
    OUT/part-00000-<hash>.tar      WebDataset: KEY.crdf, KEY.json
    OUT/part-00000-<hash>.parquet  a row for each picture, failures too
    OUT/_units/00000.json          written after them: names, sizes and hashes of the unit's files
    OUT/_index/keys.parquet        written at the end: where each picture's file is, sorted by key
    OUT/summary.json               written last: totals, percentiles, failures

Files are named by their content, and the first record of a unit counts. So doing a unit twice is harmless, whoever does
it, and files that no record names count for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff.errors import JobError, UsageError
from pipelines.files import storage
from pipelines.files.storage import READERS

PLAN, RATE, SUMMARY, INDEX = "plan.json", "rate.json", "summary.json", "_index/keys.parquet"
PLANS, UNITS = "_plan", "_units"
FORMAT = "corrdiff-dataset-1"

COLUMNS = pa.schema([
    ("key", pa.string()), ("source", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("bytes", pa.int64()),
    ("bpp", pa.float64()), ("psnr_db", pa.float64()), ("ms_ssim", pa.float64()), ("lpips", pa.float64()),
    ("texture_error", pa.float64()), ("quality", pa.int8()), ("quality_source", pa.string()), ("status", pa.string()),
    ("error", pa.string()), ("part", pa.string()), ("offset", pa.int64()),
])  # fmt: skip
"""`part` and `offset` say where a picture's file begins, `bytes` its length. What could not be computed is null."""

INDEX_COLUMNS = ("key", "part", "offset", "bytes")
INDEX_GROUP_ROWS = 1 << 14


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


class Member(NamedTuple):
    """Where one picture's file is."""

    key: str
    part: str
    offset: int
    bytes: int


def read_plan(uri: str) -> Plan | None:
    """None where nothing was begun. Raises `UsageError` where it is not readable."""
    try:
        value = storage.read_json(storage.join(uri, PLAN))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
        raise UsageError(f"{uri}/{PLAN} is of no format that this program reads ({FORMAT})")
    try:
        return Plan(**value)
    except TypeError as error:
        raise UsageError(f"{uri}/{PLAN} is damaged ({error})") from None


def create_plan(uri: str, plan: Plan) -> bool:
    """Whether this plan is the one that counts."""
    value = {"format": FORMAT, **dataclasses.asdict(plan)}
    return storage.create_bytes(storage.join(uri, PLAN), storage.to_json(value))


def record_uri(uri: str, unit: int) -> str:
    return storage.join(uri, UNITS, f"{unit:05d}.json")


def read_record(uri: str, unit: int) -> Record:
    value = storage.read_json(record_uri(uri, unit))
    try:
        return Record(**{**value, "tar": File(**value["tar"]), "parquet": File(**value["parquet"])})
    except (TypeError, KeyError) as error:
        raise UsageError(f"{record_uri(uri, unit)} is damaged ({error})") from None


def create_record(uri: str, record: Record) -> Record:
    """The record of this unit that counts: this one, or the one that was there before."""
    created = storage.create_bytes(record_uri(uri, record.unit), storage.to_json(dataclasses.asdict(record)))
    return record if created else read_record(uri, record.unit)


def finished_units(uri: str) -> list[int]:
    """Numbers of the units that are done."""
    return [int(n.removesuffix(".json")) for n in storage.list_names(storage.join(uri, UNITS)) if n.endswith(".json")]


def read_records(uri: str, units: Iterable[int]) -> Iterator[Record]:
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(lambda unit: read_record(uri, unit), units)


def read_complete(uri: str) -> tuple[Plan, dict[str, Any]]:
    """Plan and summary of a finished dataset. Raises `UsageError` where there is none."""
    plan = read_plan(uri)
    if plan is None:
        raise UsageError(f"no compressed dataset at {uri}: there is no {PLAN}")
    try:
        return plan, storage.read_json(storage.join(uri, SUMMARY))
    except FileNotFoundError:
        done = len(finished_units(uri))
        raise UsageError(
            f"{uri} is not complete: {done} of {plan.units} units are done; run 'corrdiff compress' again"
        ) from None


def find(uri: str, keys: Sequence[str]) -> list[Member]:
    """Where the files of some pictures are; reads only the parts of the index that may name them.

    Raises `UsageError` where a key is not there.
    """
    if not keys:
        return []
    try:
        with storage.open_ranges(storage.join(uri, INDEX)) as file:
            rows = pq.read_table(file, columns=list(INDEX_COLUMNS), filters=[("key", "in", list(keys))]).to_pylist()
    except FileNotFoundError:
        raise UsageError(f"{uri} has no index: the compression is not complete; run it again") from None
    found = {row["key"]: Member(**row) for row in rows}
    missing = [key for key in keys if key not in found]
    if missing:
        raise UsageError(f"{uri} has no compressed picture '{missing[0]}' ({len(missing)} of {len(keys)} are missing)")
    return [found[key] for key in keys]


def read_member(uri: str, member: Member) -> bytes:
    """A picture's file: its bytes of the part and no others. Raises `JobError` where they are not there."""
    name = storage.join(uri, member.part)
    try:
        return storage.read_range(name, member.offset, member.offset + member.bytes)
    except FileNotFoundError:
        raise JobError(f"part {name} is missing; copy it again") from None


def check_codec(uri: str, plan: Plan, codec: str, fingerprint: str) -> None:
    """Raises `UsageError` where another codec wrote the dataset."""
    wrote = plan.identity["codec"]
    if wrote != fingerprint:
        raise UsageError(
            f"{uri} was compressed by codec {wrote[:16]}, but {codec} is {fingerprint[:16]}; "
            "give the codec that wrote it"
        )
