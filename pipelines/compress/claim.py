"""What one compression is, written down before it starts, and its output claimed for it."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corrdiff.errors import UsageError
from pipelines.compress.config import CompressConfig
from pipelines.dataset import format as compressed
from pipelines.dataset.format import Plan, Stage
from pipelines.files import storage
from pipelines.inputs import units
from pipelines.inputs.samples import NONE

if TYPE_CHECKING:  # it brings torch along, which a compression that is done does without
    from pipelines.compress.rate import Rate

PLAN_TOKEN_DIGITS = 12

METRICS_BEFORE = ("bpp", "psnr_db", "ms_ssim", "lpips", "texture_error")
"""What was measured before plans said what is: parts with other columns do not make one table."""


@dataclass(frozen=True)
class CompressJob:
    """One compression, from its first stage to its report."""

    images: str
    """As a person named them."""
    out: str
    codec: str
    """URI of the codec directory."""
    plan: Plan
    config: CompressConfig
    rate: Rate | None = None
    """With a target, once it is known."""

    @property
    def planned(self) -> tuple[units.PlannedUnits, ...]:
        """Where it is written down which pictures are in which unit."""
        return self.plan.planned(self.out)

    @property
    def fingerprint(self) -> str:
        """Of the codec with which it began."""
        return str(self.plan.identity["codec"])


def claim(images: str, out: str, fingerprint: str, config: CompressConfig) -> Plan:
    """The plan of `out`: the one that is there if it is of the same pictures, codec and settings, else a new one.

    Raises `UsageError` where there are no pictures, `out` lies among them, or it holds another compression.
    """
    listed = storage.absolute(images)
    if out == listed or out.startswith(f"{listed}/"):
        raise UsageError(f"{out} lies among the pictures of {listed}; choose another directory")
    identity = {
        "codec": fingerprint, "images": listed, "metrics": list(compressed.metric_columns()), **config.identity(),
    }  # fmt: skip
    absent = {"metrics": METRICS_BEFORE, **CompressConfig(columns=(NONE,)).identity()}
    names = storage.list_names(out)  # before it is known whose they are: nobody's, where there is no plan afterwards
    there = compressed.read_plan(out)
    if there is not None:
        return compressed.claim_plan(out, Plan(identity, there.stages), absent)
    strange = compressed.strange_names(names)
    if strange:
        raise UsageError(
            f"{out} holds {strange[0]}, and no plan of a compression that it could be of; choose another directory"
        )
    left_out: Counter[str] = Counter()
    stage = write_stage(out, units.plan_units(listed, config.column, config.unit, left_out, config.travels()), left_out)
    if not stage.units:
        raise UsageError(units.nothing_at(listed, left_out))
    try:
        counts = compressed.claim_plan(out, Plan(identity, (stage,)), absent)
    except UsageError:
        remove_stage(out, stage)
        raise
    if counts.stages[0] != stage:  # another job of the same compression was quicker
        remove_stage(out, stage)
    return counts


def write_stage(out: str, planned: Iterator[units.Unit], left_out: Counter[str]) -> Stage:
    """Write down the units of a stage, which is not one of the plan's yet; `left_out` is read when all are written."""
    directory = f"{compressed.PLANS}/{uuid.uuid4().hex[:PLAN_TOKEN_DIGITS]}"
    count = units.write_plan(storage.join(out, directory), planned)
    return Stage(directory, count.units, count.pictures, count.files, dict(left_out), count.again)


def remove_stage(out: str, stage: Stage) -> None:
    """Remove what `write_stage` wrote."""
    units.remove_plan(units.PlannedUnits(storage.join(out, stage.directory), stage.files))
