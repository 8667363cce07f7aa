"""`corrdiff show` and `corrdiff stats` as a person sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import load_codec, read_config
from corrdiff.errors import UsageError
from corrdiff.picture import Picture
from pipelines.dataset import format as compressed
from pipelines.dataset.format import metric_columns
from pipelines.dataset.index import Member, read_member
from pipelines.dataset.print import print_summary
from pipelines.dataset.summary import read_complete
from pipelines.display.contact_sheet import Panel, side_by_side
from pipelines.display.progress import console
from pipelines.files import storage
from pipelines.show import choose
from pipelines.show.choose import Row
from pipelines.show.config import ShowConfig

SIDE_PX = 320
"""Of a picture on a sheet, at most."""
PICTURES_A_ROW = 4
LABEL_CHARACTERS = 40


def print_stats(dataset: str) -> None:
    """Print the table of a finished compression again, from its files alone.

    Raises `UsageError` where there is no finished dataset.
    """
    uri = storage.absolute(dataset)
    print_summary(read_complete(uri)[1], uri)


def show_pictures(dataset: str, codec: str, out: str, overwrite: bool, config: ShowConfig) -> None:
    """Print some rows of a compressed dataset, and write a sheet of their pictures as a PNG.

    Raises:
        UsageError: no finished dataset, another codec's, no such key or metric, or `out` exists.
        JobError: a part is missing or damaged.
    """
    uri, out, codec = storage.absolute(dataset), storage.absolute(out), storage.absolute(codec)
    plan, _ = read_complete(uri)
    if config.failed:
        _print(choose.failed(uri, plan, config.count))
        return
    compressed.check_codec(uri, plan, codec, read_config(codec)[1])
    if not overwrite and storage.exists(out):
        raise UsageError(f"{out} exists; give another --out, or say --overwrite")
    if config.keys:
        rows = choose.of_keys(uri, config.keys)
    elif config.worst is not None:
        rows = choose.worst(uri, plan, config.worst, config.count)
    else:
        rows = choose.drawn(uri, config.random or config.count, config.seed)
    _print(rows)
    if rows:
        storage.write_bytes(out, sheet(uri, rows, load_codec(codec), config.max_pixels))
        console.print(f"{out}: {len(rows)} pictures, numbered as above")


def sheet(uri: str, rows: Sequence[Row], codec: CorrDiffCodec, max_pixels: int) -> bytes:
    """The pictures of some rows, made small, as a PNG; each has its number and the end of its key under it."""
    panels = []
    for number, row in enumerate(rows, 1):
        member = Member(row["key"], row["part"], row["offset"], row["bytes"])
        data = read_member(uri, member)
        key = row["key"] if len(row["key"]) <= LABEL_CHARACTERS else f"...{row['key'][3 - LABEL_CHARACTERS :]}"
        panels.append(Panel(f"{number}  {key}", _small(codec.decompress(data, max_pixels=max_pixels))))
    return side_by_side([panels[i : i + PICTURES_A_ROW] for i in range(0, len(panels), PICTURES_A_ROW)])


def _small(picture: Picture) -> Picture:
    """A picture whose longer side is at most SIDE_PX, on white as wide as all others are."""
    image = Image.fromarray(picture)
    image.thumbnail((SIDE_PX, SIDE_PX))
    field = Image.new("RGB", (SIDE_PX, image.height), (255, 255, 255))
    field.paste(image)
    return np.asarray(field)


def _print(rows: Sequence[Row]) -> None:
    """Two lines for each row; of a failure its source and reason."""
    if not rows:
        console.print("there are none")
    for number, row in enumerate(rows, 1):
        console.print(f"{number}  {row['key']}")
        if row["status"] == "failed":
            console.print(f"   {row['source']}: {row['error']}")
            continue
        measured = [f"{name} {row[name]:.3f}" for name in metric_columns() if row.get(name) is not None]
        size = f"{row['width']}x{row['height']}, {row['bytes']:,} bytes, quality {row['quality']:g}"
        console.print(f"   {', '.join([size, *measured])}")
