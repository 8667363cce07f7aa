"""The long commands as a person sees them: progress while they run, a summary when they end."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from corrdiff.errors import JobError
from pipelines import batch_compress, batch_decompress, cut_shards, storage
from pipelines.compress_report import PERCENTILES, Summary
from pipelines.config import CompressConfig, DecompressConfig, EvaluateConfig, ShardConfig
from pipelines.progress import Pace, console, display
from pipelines.shards import MANIFEST, VALIDATION, Manifest, has_validation, read_manifest

if TYPE_CHECKING:
    from pipelines.evaluate import Finished

WORST_REASONS = 5


def run_sharding(images: str, out: str, config: ShardConfig, only: str | None = None) -> Manifest:
    """Cut shards with a progress display; returns the manifest of the training shards."""
    out = storage.absolute(out)
    steps = cut_shards.cut_shards(images, out, config, only)
    first = next(steps)
    assert isinstance(first, cut_shards.Progress)
    with display("shards", first.images_total, "pictures") as shown:
        shown.update(first.images_done)
        for step in steps:
            if not isinstance(step, cut_shards.Progress):
                break
            shown.update(step.images_done, f"{step.crops:,} crops")
    assert not isinstance(step, cut_shards.Progress)
    for split, manifest in step.items():
        size = sum(shard.bytes for shard in manifest.shards)
        console.print(
            f"{out}, {split}: {manifest.count:,} crops of {manifest.crop} pixels in {len(manifest.shards)} shards, "
            f"{size / 1e6:,.1f} MB"
        )
        if manifest.flat:
            console.print(f"  left out as flat: {manifest.flat:,} crops")
        _print_first([f"skipped {uri}: {reason}" for uri, reason in manifest.skipped], MANIFEST)
    return step["train"]


def run_verification(uri: str) -> None:
    """Read all shards with a progress display. Raises `JobError` where one is not the manifest's."""
    uri = storage.absolute(uri)
    total = len(read_manifest(uri).shards)
    if has_validation(uri):
        total += len(read_manifest(storage.join(uri, VALIDATION)).shards)
    wrong: list[str] = []
    with display("verify", total, "shards") as shown:
        for done, (name, problem) in enumerate(cut_shards.verify_shards(uri), start=1):
            shown.update(done, f"{len(wrong)} wrong" if wrong else "")
            if problem:
                wrong.append(name)
                console.print(f"{name}: {problem}")
    if wrong:
        raise JobError(f"{len(wrong)} of {total} shards are wrong; cut each again with --only, or copy it again")
    console.print(f"{uri}: all {total} shards are what was cut")


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


def run_decompression(dataset: str, out: str, codec: str, config: DecompressConfig, keys: Sequence[str] = ()) -> int:
    """Decompress a dataset, or some keys of it, with a progress display; returns the number of pictures."""
    steps = batch_decompress.decompress_dataset(dataset, out, codec, config, keys)
    first = step = next(steps)
    with display("decompress", first.pictures_total, "pictures") as shown:
        shown.update(first.pictures_done)
        for step in steps:
            shown.update(step.pictures_done)
    if not first.pictures_total:
        console.print("nothing to do: every picture is there")
    console.print(f"{out}: {step.pictures_done} pictures")
    return step.pictures_done


def run_evaluation(images: str, out: str, codecs: Sequence[str], config: EvaluateConfig) -> Finished:
    """Evaluate codecs with a progress display; returns what came of it."""
    from pipelines import evaluate  # it brings plotting and SciPy along, which no other command waits for

    steps = evaluate.evaluate(images, out, codecs, config)
    first = next(steps)
    assert isinstance(first, evaluate.Progress)
    with display("evaluate", first.total, "measurements") as shown:
        shown.update(first.done)
        for step in steps:
            if not isinstance(step, evaluate.Progress):
                break
            shown.update(step.done, f"{step.errors} failed" if step.errors else "")
    assert not isinstance(step, evaluate.Progress)
    table = Table(title=f"BD-rate against {config.reference}", title_justify="left")
    for column in ("curve", "metric", "rates", "BD-rate", "95%", "overlap"):
        table.add_column(column, justify="left" if column in ("curve", "metric", "rates") else "right")
    for c in step.comparisons:
        if c.rate is not None:
            interval = f"{c.rate.low:+.1f} to {c.rate.high:+.1f}" if c.rate.low is not None else ""
            table.add_row(c.curve, c.metric, c.rates, f"{c.rate.value:+.1f}%", interval, f"{c.overlap:.0%}")
    console.print(table)
    _print_first([f"left out {error}" for error in step.errors], "results.csv")
    console.print(f"report: {step.report}")
    return step


def _print_first(lines: Sequence[str], file: str) -> None:
    """Some of them, and where all are."""
    for line in lines[:WORST_REASONS]:
        console.print(f"  {line}")
    if len(lines) > WORST_REASONS:
        console.print(f"  ... and {len(lines) - WORST_REASONS} more, all in {file}")


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
