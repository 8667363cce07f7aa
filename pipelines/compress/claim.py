"""What one compression is, written down before it starts, and its output claimed for it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corrdiff.errors import UsageError
from pipelines.compress.config import CompressConfig
from pipelines.dataset import format as compressed
from pipelines.dataset.format import Plan
from pipelines.files import storage
from pipelines.inputs import units

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
    def units_directory(self) -> str:
        """Where it is written down which pictures are in which unit."""
        return storage.join(self.out, self.plan.directory)


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
    absent = {"metrics": METRICS_BEFORE, **CompressConfig().identity()}
    there = compressed.read_plan(out)
    if there is not None:
        return compressed.claim_plan(out, Plan(identity, there.directory, there.units, there.pictures), absent)
    directory = f"{compressed.PLANS}/{uuid.uuid4().hex[:PLAN_TOKEN_DIGITS]}"
    count = units.write_plan(storage.join(out, directory), units.plan_units(listed, config.column, config.unit))
    if not count.units:
        raise UsageError(units.nothing_at(listed))
    plan = Plan(identity, directory, count.units, count.pictures)
    try:
        counts = compressed.claim_plan(out, plan, absent)
    except UsageError:
        storage.remove_tree(storage.join(out, directory))
        raise
    if counts != plan:  # another job of the same compression was quicker
        storage.remove_tree(storage.join(out, directory))
    return counts
