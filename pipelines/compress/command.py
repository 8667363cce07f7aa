"""`corrdiff compress` as a person sees it."""

from __future__ import annotations

import os

from rich.table import Table

from pipelines.compress.config import CompressConfig
from pipelines.compress.estimate import estimate
from pipelines.compress.job import compress_dataset
from pipelines.dataset.summary import PERCENTILES, Summary
from pipelines.display.progress import WORST_REASONS, console, show
from pipelines.inputs.sources import left_out_sentence


def run_compression(images: str, out: str, codec: str, config: CompressConfig) -> Summary:
    """Compress a dataset with a progress display; returns the summary."""
    summary = show("compress", compress_dataset(images, out, codec, config))
    _print_summary(summary, out)
    return summary


def print_estimate(images: str, codec: str, config: CompressConfig) -> None:
    """Say what a compression would take, from a few of its pictures."""
    workers = config.workers or os.cpu_count() or 1
    e = estimate(images, codec, config, workers)
    console.print(f"pictures: {e.pictures:,} (estimates are from {e.sampled} of them){left_out_sentence(e.left_out)}")
    console.print(f"read:     about {e.input_bytes:,} bytes")
    console.print(f"write:    about {e.output_bytes:,} bytes")
    console.print(f"time:     about {e.seconds / 3600:.3f} hours with {workers} workers like this machine's")


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
    if summary.left_out:
        console.print(f"{sum(summary.left_out.values()):,} files are no pictures{left_out_sentence(summary.left_out)}")
    if summary.failures:
        console.print(f"{summary.failures} of {summary.pictures} pictures failed:")
        worst = sorted(summary.failure_reasons.items(), key=lambda item: -item[1])
        for reason, count in worst[:WORST_REASONS]:
            console.print(f"  {count} x {reason}")
