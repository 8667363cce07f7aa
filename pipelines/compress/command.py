"""`corrdiff` compress as a person sees it."""

from __future__ import annotations

import itertools

from rich.table import Table

from pipelines.compress import job as batch_compress
from pipelines.compress.config import CompressConfig
from pipelines.compress.report import PERCENTILES, Summary
from pipelines.display.progress import WORST_REASONS, Pace, console, display


def run_compression(images: str, out: str, codec: str, config: CompressConfig) -> Summary:
    """Compress a dataset with a progress display; returns the summary."""
    steps = batch_compress.compress_dataset(images, out, codec, config)
    first = next(steps)
    if isinstance(first, Summary):
        console.print("nothing to do: every part is there")
        _print_summary(first, out)
        return first
    counts_units = first.pictures_total is None  # nobody knows yet how many pictures are in the tars
    total = first.units_total if first.pictures_total is None else first.pictures_total
    summary: Summary | None = None
    pace = Pace(first.megapixels)
    with display("compress", total, "units" if counts_units else "pictures") as shown:
        for step in itertools.chain([first], steps):
            if isinstance(step, Summary):
                summary = step
                continue
            bpp = f"{8 * step.bytes / (step.megapixels * 1e6):.3f} bpp, " if step.megapixels else ""
            failed = f", {step.failures:,} failed" if step.failures else ""
            pictures = f"{step.pictures_done:,} pictures, " if counts_units else ""
            note = f"{pictures}{bpp}{pace.of(step.megapixels):.2f} Mpx/s{failed}"
            shown.update(step.units_done if counts_units else step.pictures_done, note)
    assert summary is not None
    _print_summary(summary, out)
    return summary


def _print_summary(summary: Summary, out: str) -> None:
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
    if summary.failures:
        console.print(f"{summary.failures} of {summary.pictures} pictures failed:")
        worst = sorted(summary.failure_reasons.items(), key=lambda item: -item[1])
        for reason, count in worst[:WORST_REASONS]:
            console.print(f"  {count} x {reason}")
