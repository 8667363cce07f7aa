"""What is added to a compression: what is new at its source, and what failed, once more.

Each is a stage of the plan, written down before any of it is done, and claimed as the first one was: of two jobs that
add something at once one is first, and the other one looks again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

from pipelines.compress.claim import remove_stage, write_stage
from pipelines.compress.config import CompressConfig
from pipelines.dataset import format as compressed
from pipelines.dataset.attempts import read_attempts, read_newest
from pipelines.dataset.format import Plan, Stage
from pipelines.dataset.summary import NUMBER
from pipelines.dataset.units import finished_units, read_records
from pipelines.files import storage
from pipelines.inputs import units
from pipelines.inputs.known import Known
from pipelines.inputs.samples import Unit
from pipelines.inputs.sources import Source

CHANGED_SHOWN = 5


def extend(out: str, plan: Plan, config: CompressConfig, say: Callable[[str], None]) -> Plan:
    """Add what is at the source and in no stage yet; says what was planned and has changed since.

    Raises `UsageError` where the source cannot be listed.
    """
    images = str(plan.identity["images"])
    if images.startswith(storage.SAMPLE_SCHEME):
        say(f"nothing is new at {images}, which does not grow")
        return plan
    while True:
        left_out: Counter[str] = Counter()
        with tempfile.TemporaryDirectory() as scratch, contextlib.closing(Known(scratch)) as known:
            known.plan(unit for _, unit in plan.all_units(out))
            found = units.plan_units(images, config.column, config.unit, left_out, config.travels(), known.new)
            added = write_stage(out, found, left_out)
            changed, first = known.changed(CHANGED_SHOWN)
        grown = _add(out, plan, added)
        if grown is not None:
            break
        plan = compressed.read_plan(out) or plan
    how_much = f"{added.units:,} units" if added.pictures is None else f"{added.pictures:,} pictures"
    say(f"new at {images}: {how_much}" if added.units else f"nothing is new at {images}")
    if changed:
        say(f"changed since they were planned, and left as they are: {changed:,}, such as {', '.join(first)}")
    return grown


def retry(out: str, plan: Plan, config: CompressConfig, reason: str, say: Callable[[str], None]) -> Plan:
    """Add what failed at its last attempt for a reason with this text in it, if all units are done."""
    while True:
        if len(finished_units(out)) < plan.units:
            say("first what is missing; run it once more then, to try again what has failed")
            return plan
        added = write_stage(out, _failed(out, plan, config, reason), Counter())
        grown = _add(out, plan, added)
        if grown is not None:
            why = f" because of '{reason}'" if reason else ""
            say(f"tried again: {added.again:,} that failed{why}" if added.units else f"nothing has failed{why}")
            return grown
        plan = compressed.read_plan(out) or plan


def _add(out: str, plan: Plan, stage: Stage) -> Plan | None:
    """The plan with one more stage, if it has any units; None where another job was quicker to add one."""
    if not stage.units:
        return plan
    if compressed.grow(out, plan, stage):
        return dataclasses.replace(plan, stages=(*plan.stages, stage))
    remove_stage(out, stage)
    return None


def _failed(out: str, plan: Plan, config: CompressConfig, reason: str) -> Iterator[Unit]:
    """Units of what failed: first of files, then of each tar and table of which something did."""
    planned, attempts = plan.planned(out), read_attempts(out, plan)
    others: dict[_Place, Unit] = {}

    def files() -> Iterator[Source]:
        read_units = functools.lru_cache(maxsize=1)(units.read_units)
        with_failures = (record for record in read_records(out, range(plan.units)) if record.failures)
        for record, table in read_newest(out, with_failures, attempts):
            rows = table.select(["key", "status", "error"]).to_pylist()
            keys = [row["key"] for row in rows if row["status"] == "failed" and _is_because(row["error"], reason)]
            unit = units.read_unit(planned, record.unit, read_units)
            if unit.keyed:
                yield from (_source(unit, key) for key in keys)
            elif keys:
                before = others.get(_place(unit), unit._replace(again=[]))
                others[_place(unit)] = unit._replace(again=before.again + keys, units=[*unit.units, record.unit])

    for unit in units.of_files(files(), config.unit, config.travels()):
        yield unit._replace(again=unit.keys)
    for number, unit in plan.all_units(out, retries_alone=True):
        if _place(unit) in others:
            others[_place(unit)] = others[_place(unit)]._replace(units=[*unit.units, number])
    yield from others.values()


def _is_because(error: str, reason: str) -> bool:
    """Whether an error has a text in it, or has it where numbers are `N`, as the table of reasons writes them."""
    return reason in error or reason in re.sub(NUMBER, "N", error)


_Place = tuple[str, str, int, int]
"""What a unit reads of a tar or a table."""


def _place(unit: Unit) -> _Place:
    return unit.kind, unit.uris[0], unit.group, unit.first


def _source(unit: Unit, key: str) -> Source:
    """A file of a unit as it was found."""
    at = unit.keys.index(key)
    return Source(
        key, unit.uris[at], unit.problems[at] if unit.problems else "",
        tuple(unit.sidecars[at]) if unit.sidecars else (), unit.marks[at] if unit.marks else 0,
    )  # fmt: skip
