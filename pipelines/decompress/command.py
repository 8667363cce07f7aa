"""`corrdiff` decompress as a person sees it."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.decompress import job as batch_decompress
from pipelines.decompress.config import DecompressConfig
from pipelines.display.progress import console, display


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
