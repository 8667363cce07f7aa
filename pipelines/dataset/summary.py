"""What a finished compression came to: OUT/summary.json."""

from __future__ import annotations

from dataclasses import dataclass, field

from corrdiff.errors import UsageError
from pipelines.dataset.format import PLAN, SUMMARY, Plan, read_plan
from pipelines.dataset.units import finished_units
from pipelines.files import storage
from pipelines.files.records import read_record

PERCENTILES = (5, 25, 50, 75, 95)

NUMBER = r"\d[\d,]*"
"""What stands as `N` in a reason, so that like failures count together."""


@dataclass(frozen=True)
class Summary:
    """A finished compression."""

    pictures: int
    failures: int
    bytes: int
    pixels: int
    bpp: float | None
    """All bits over all pixels; None where every picture failed."""
    percentiles: dict[str, dict[str, float]]
    """Metric -> "mean", "p5" ... "p95"."""
    failure_reasons: dict[str, int]
    """Numbers in a reason are left out, so that like failures count together."""
    qualities: dict[str, int]
    """Pictures of each quality."""
    codec_fingerprint: str
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> files that were found and not taken: what was found is pictures, failures among them, these, and
    `members`."""
    members: int = 0
    """Files that travel with the pictures; what a picture had with it that was tried again is in two parts."""
    units: int = 0
    """That it is of; 0 of an older version, which knew of no growth."""

    def covers(self, plan: Plan) -> bool:
        """Whether it is of all that is planned by now."""
        return (self.units or plan.stages[0].units) == plan.units


def read_summary(uri: str) -> Summary | None:
    """The summary of a dataset, or None where the compression is not finished."""
    try:
        return read_record(storage.join(uri, SUMMARY), Summary)
    except FileNotFoundError:
        return None


def read_complete(uri: str) -> tuple[Plan, Summary]:
    """Plan and summary of a finished dataset: while it grows, as it was before.

    Raises `UsageError` where there is none.
    """
    plan = read_plan(uri)
    if plan is None:
        raise UsageError(f"no compressed dataset at {uri}: there is no {PLAN}")
    summary = read_summary(uri)
    if summary is None:
        done = len(finished_units(uri))
        raise UsageError(f"{uri} is not complete: {done} of {plan.units} units are done; run 'corrdiff compress' again")
    return plan.until(summary.units), summary
