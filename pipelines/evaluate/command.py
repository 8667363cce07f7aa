"""`corrdiff evaluate` as a person sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from pipelines.display.progress import console, print_first, show
from pipelines.evaluate.config import EvaluateConfig

if TYPE_CHECKING:
    from pipelines.evaluate.job import Finished


def run_evaluation(images: str, out: str, codecs: Sequence[str], config: EvaluateConfig) -> Finished:
    """Evaluate codecs with a progress display; returns what came of it."""
    from pipelines.evaluate.job import evaluate  # it brings plotting and SciPy along, which no other command waits for

    finished = show("evaluate", evaluate(images, out, codecs, config))
    table = Table(title=f"BD-rate against {config.reference}", title_justify="left")
    for column in ("curve", "metric", "rates", "BD-rate", "95%", "overlap"):
        table.add_column(column, justify="left" if column in ("curve", "metric", "rates") else "right")
    for c in finished.comparisons:
        if c.rate is not None:
            interval = f"{c.rate.low:+.1f} to {c.rate.high:+.1f}" if c.rate.low is not None else ""
            table.add_row(c.curve, c.metric, c.rates, f"{c.rate.value:+.1f}%", interval, f"{c.overlap:.0%}")
    console.print(table)
    print_first([f"left out {error}" for error in finished.errors], "results.csv")
    console.print(f"report: {finished.report}")
    return finished
