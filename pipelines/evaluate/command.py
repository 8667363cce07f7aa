"""`corrdiff evaluate` as a person sees it."""

from __future__ import annotations

import tempfile
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from pipelines.display.progress import console, print_first, show
from pipelines.evaluate.config import EvaluateConfig
from pipelines.files import storage
from pipelines.inputs.sources import left_out_sentence

if TYPE_CHECKING:
    from pipelines.evaluate.job import Finished


def run_evaluation(images: str, out: str, codecs: Sequence[str], config: EvaluateConfig) -> Finished:
    """Evaluate codecs with a progress display; returns what came of it."""
    from pipelines.evaluate.job import evaluate  # it brings plotting and SciPy along, which no other command waits for

    finished = show("evaluate", evaluate(images, out, codecs, config))
    table = Table(title=f"BD-rate against {config.reference}", title_justify="left")
    for column in ("curve", "metric", "rates", "BD-rate", "95%", "overlap"):
        table.add_column(column, justify="left" if column in ("curve", "metric", "rates") else "right")
    refused = 0
    for c in finished.comparisons:
        if c.rate is not None:
            interval = f"{c.rate.low:+.1f} to {c.rate.high:+.1f}" if c.rate.low is not None else ""
            table.add_row(c.curve, c.metric, c.rates, f"{c.rate.value:+.1f}%", interval, f"{c.overlap:.0%}")
        else:
            refused += 1
    console.print(table)
    if refused:
        console.print(f"{refused} more have no BD-rate: the report says why")
    if finished.left_out:
        number = sum(finished.left_out.values())
        console.print(f"{number:,} files are no pictures{left_out_sentence(finished.left_out)}")
    print_first([f"not measured: {error}" for error in finished.errors], "results.csv")
    console.print(f"report: {finished.report}")
    return finished


def open_report(report: str) -> None:
    """Show a report in the browser. One that is not on this machine is copied to a temporary file first."""
    path = Path(report)
    if not path.is_file():
        with tempfile.NamedTemporaryFile("wb", suffix=".html", delete=False) as file:
            file.write(storage.read_bytes(report))
        path = Path(file.name)
    if not webbrowser.open(path.as_uri()):
        console.print(f"there is no browser to open {path}")
