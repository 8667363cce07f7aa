"""`corrdiff compress` as a person sees it."""

from __future__ import annotations

import os

from pipelines.compress.config import CompressConfig
from pipelines.compress.estimate import estimate
from pipelines.compress.job import compress_dataset
from pipelines.dataset.print import print_summary
from pipelines.dataset.summary import Summary
from pipelines.display.progress import console, show
from pipelines.inputs.sources import left_out_sentence


def run_compression(
    images: str, out: str, codec: str, config: CompressConfig, extending: bool = False, retrying: str | None = None
) -> Summary:
    """Compress a dataset with a progress display; returns the summary."""
    summary = show("compress", compress_dataset(images, out, codec, config, extending, retrying))
    print_summary(summary, out)
    return summary


def print_estimate(images: str, codec: str, config: CompressConfig) -> None:
    """Say what a compression would take, from a few of its pictures."""
    workers = config.workers or os.cpu_count() or 1
    e = estimate(images, codec, config, workers)
    console.print(f"pictures: {e.pictures:,} (estimates are from {e.sampled} of them){left_out_sentence(e.left_out)}")
    console.print(f"read:     about {e.input_bytes:,} bytes")
    console.print(f"write:    about {e.output_bytes:,} bytes")
    console.print(f"time:     about {e.seconds / 3600:.3f} hours with {workers} workers like this machine's")
