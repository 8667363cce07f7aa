"""`corrdiff decompress` as a person sees it."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.decompress.config import DecompressConfig
from pipelines.decompress.job import decompress_dataset
from pipelines.display.progress import console, show


def run_decompression(dataset: str, out: str, codec: str, config: DecompressConfig, keys: Sequence[str] = ()) -> int:
    """Decompress a dataset, or some keys of it, with a progress display; returns the number of pictures."""
    pictures = show("decompress", decompress_dataset(dataset, out, codec, config, keys))
    if not pictures:
        console.print("nothing to do: every picture is there")
    console.print(f"{out}: {pictures} pictures")
    return pictures
