"""What a finished compression came to, on the terminal."""

from __future__ import annotations

from rich.table import Table

from pipelines.dataset.summary import PERCENTILES, Summary
from pipelines.display.progress import WORST_REASONS, console
from pipelines.inputs.sources import left_out_sentence


def print_summary(summary: Summary, out: str) -> None:
    """Print totals, percentiles, what travels, what was left out, and the commonest reasons of failures."""
    table = Table(
        title=f"{summary.pictures - summary.failures} pictures, {summary.bytes:,} bytes", title_justify="left"
    )
    columns = ["mean", *(f"p{p}" for p in PERCENTILES)]
    for column in ("metric", *columns):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name, stats in summary.percentiles.items():
        table.add_row(name, *(f"{stats[column]:.3f}" for column in columns))
    console.print(table)
    if summary.bpp is not None:
        console.print(f"{out}: {summary.bpp:.4f} bpp over all pixels")
    if summary.members:
        console.print(f"{summary.members:,} files travel with them")
    if summary.left_out:
        console.print(f"{sum(summary.left_out.values()):,} files are no pictures{left_out_sentence(summary.left_out)}")
    if summary.failures:
        console.print(f"{summary.failures} of {summary.pictures} pictures failed:")
        worst = sorted(summary.failure_reasons.items(), key=lambda item: -item[1])
        for reason, count in worst[:WORST_REASONS]:
            console.print(f"  {count} x {reason}")
