"""What a compressed dataset is, and reading it.

    OUT/plan.json                  the codec, the settings and how many units; the first one that is written counts
    OUT/rate.json                  with a target, the rule by which each picture finds its quality
    OUT/_plan/...                  which pictures belong to which unit (inputs/units.py)
    OUT/_grown/00001.json          units that were added later, numbered on: new pictures, or failures once more
    OUT/part-00000-<hash>.tar      WebDataset: KEY.crdf, KEY.crdf.json, and the files that travel with it (fields.py)
    OUT/part-00000-<hash>.parquet  a row for each picture, failures too, and the columns that travel with it
    OUT/_writing/00000-...         written before a unit's files: that this compression writes them
    OUT/_units/00000.json          written after them: names, sizes and hashes of the unit's files (units.py)
    OUT/_index/keys.parquet        written at the end: where each picture's file is, sorted by key
    OUT/summary.json               written last: totals, percentiles, failures (summary.py)

Files are named by their content, and the first record of a unit counts. So doing a unit twice is harmless, whoever does
it, and files that no record names count for nothing. What a worker wrote in vain is removed at the end; what was there
before is neither written over nor removed, whatever it is called.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from corrdiff.errors import JobError, UsageError
from pipelines.files import records, storage
from pipelines.inputs.units import PlannedUnits, Unit, all_units

PLAN, RATE, SUMMARY, INDEX = "plan.json", "rate.json", "summary.json", "_index/keys.parquet"
PLANS, GROWN, WRITING, UNITS = "_plan", "_grown", "_writing", "_units"
FORMAT = "corrdiff-dataset-1"

INDEX_COLUMNS = ("key", "part", "offset", "bytes")
INDEX_GROUP_ROWS = 1 << 14
PART_DIGITS = 12
PART = re.compile(rf"part-(\d{{5,}})-[0-9a-f]{{{PART_DIGITS}}}\.(tar|parquet)")
"""Names of parts and of their tables: the unit, and what kind of file it is."""

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
class Stage:
    """Units that were planned together."""

    directory: str
    """Of their descriptions, under OUT."""
    units: int
    pictures: int | None
    """None where tars are among the input, which are not opened before their turn."""
    files: tuple[str, ...] = ()
    """SHA-256 of each file of the units' descriptions; none of a dataset of an older version."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> files that were found and not taken."""
    again: int = 0
    """Of the pictures, those that failed before."""

    @property
    def retries(self) -> bool:
        """Whether it tries again what failed; else it is what was found at the source."""
        return self.again > 0


@dataclass(frozen=True)
class Plan:
    """What a compressed dataset is to be."""

    identity: dict[str, Any]
    """Codec, pictures and settings: what makes two compressions the same."""
    stages: tuple[Stage, ...]
    """The first, and those by which it has grown."""

    @property
    def name(self) -> str:
        """Which dataset it is, however it grows."""
        return self.stages[0].directory

    @property
    def units(self) -> int:
        """Of all stages; they are numbered on from one to the next."""
        return sum(stage.units for stage in self.stages)

    @property
    def pictures(self) -> int | None:
        """Each once, however often it was tried; None where that is not known before all is done."""
        counts = [stage.pictures for stage in self.stages]
        known = [count for count in counts if count is not None]
        return sum(known) - self.again if len(known) == len(counts) else None

    @property
    def again(self) -> int:
        """Failures that are tried again, each as often as it is."""
        return sum(stage.again for stage in self.stages)

    @property
    def left_out(self) -> dict[str, int]:
        """Reason -> files that were found and not taken, when the source was listed last."""
        return next(stage.left_out for stage in reversed(self.stages) if not stage.retries)

    def numbered(self) -> Iterator[tuple[int, Stage]]:
        """The number of the first unit of each stage, and the stage."""
        return zip(itertools.accumulate((s.units for s in self.stages), initial=0), self.stages, strict=False)

    def planned(self, uri: str) -> tuple[PlannedUnits, ...]:
        """Where it is written down what is in which unit."""
        return tuple(
            PlannedUnits(storage.join(uri, stage.directory), stage.files, first) for first, stage in self.numbered()
        )

    def all_units(self, uri: str, retries_alone: bool = False) -> Iterator[tuple[int, Unit]]:
        """Numbers and descriptions of all units, or of those that try something again. Raises as `read_units`."""
        for (first, stage), planned in zip(self.numbered(), self.planned(uri), strict=True):
            if stage.retries or not retries_alone:
                yield from enumerate(all_units(planned, stage.units), first)

    def until(self, units: int) -> Plan:
        """As it was when it had so many units."""
        kept = tuple(stage for first, stage in self.numbered() if first + stage.units <= units)
        return dataclasses.replace(self, stages=kept or self.stages[:1])


def part_name(unit: int, extension: str, sha256: str) -> str:
    """The name of a part or its table, by its content."""
    return f"part-{unit:05d}-{sha256[:PART_DIGITS]}.{extension}"


def unit_of(part: str) -> int:
    """The number of the unit whose part has a name. Raises `JobError` where no part is called that."""
    name = PART.fullmatch(part)
    if name is None:
        raise JobError(f"the index names a part '{part}' that can be none; copy it again")
    return int(name[1])


def strange_names(names: Iterable[str]) -> list[str]:
    """Of the names in a directory without a plan, those that a compression would take for its own."""
    ours = {RATE, SUMMARY, GROWN, WRITING, UNITS, INDEX.partition("/")[0]}
    return [name for name in names if name in ours or PART.fullmatch(name)]


def units_without_part(uri: str, units: int) -> list[int]:
    """Numbers of the units of a finished dataset of which no tar, or no table, is there; by the names alone."""
    found = filter(None, map(PART.fullmatch, storage.list_names(uri)))
    there = {(int(name[1]), name[2]) for name in found}
    return [unit for unit in range(units) if not {(unit, "tar"), (unit, "parquet")} <= there]


def read_plan(uri: str) -> Plan | None:
    """The plan of a dataset, or None where nothing was begun. Raises `UsageError` where it is not readable."""
    try:
        value = storage.read_json(storage.join(uri, PLAN))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _plan(value, uri)


def is_dataset(uri: str) -> bool:
    """Whether a directory is a compressed dataset's, begun or done; one of shards has a plan, too, of another kind."""
    try:
        value = storage.read_json(storage.join(uri, PLAN))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return isinstance(value, dict) and value.get("format") == FORMAT


def claim_plan(uri: str, plan: Plan, absent: Mapping[str, Any] | None = None) -> Plan:
    """Make a plan of one stage that of a directory: returns the one that counts, which is an earlier one where there is
    one, and what it has grown by.

    `absent` stands for the parts of an identity that an older plan does not name.

    Raises `UsageError` where that is another compression's.
    """
    value = {"format": FORMAT, "identity": plan.identity, **dataclasses.asdict(plan.stages[0])}
    return _plan(records.claim(storage.join(uri, PLAN), value, f"{uri} holds another compression", absent=absent), uri)


def grow(uri: str, plan: Plan, stage: Stage) -> bool:
    """Add a stage to a dataset; whether that was done, and not something else by another job."""
    place = storage.join(uri, GROWN, f"{len(plan.stages):05d}.json")
    return storage.create_bytes(place, storage.sealed(dataclasses.asdict(stage)))


def _plan(value: Any, uri: str) -> Plan:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UsageError(f"{uri}/{PLAN} is of no format that this program reads ({FORMAT})")
    place = storage.join(uri, PLAN)
    first = {name: field for name, field in value.items() if name not in ("format", "identity")}
    identity = records.to_record({"identity": value.get("identity")}, _Identity, place).identity
    grown = [name for name in storage.list_names(storage.join(uri, GROWN)) if re.fullmatch(r"\d{5}\.json", name)]
    missing = [name for number, name in enumerate(grown, 1) if name != f"{number:05d}.json"]
    if missing:
        raise UsageError(f"{storage.join(uri, GROWN)} has {missing[0]}, but not all before it; copy it again")
    later = [records.read_record(storage.join(uri, GROWN, name), Stage) for name in grown]
    return Plan(identity, (records.to_record(first, Stage, place), *later))


class _Identity(NamedTuple):
    """Of plan.json, what is not of its first stage."""

    identity: dict[str, Any]


def check_codec(uri: str, plan: Plan, codec: str, fingerprint: str) -> None:
    """Raises `UsageError` where another codec wrote the dataset."""
    wrote = plan.identity["codec"]
    if wrote != fingerprint:
        raise UsageError(
            f"{uri} was compressed by codec {wrote[:16]}, but {codec} is {fingerprint[:16]}; "
            "give the codec that wrote it"
        )
