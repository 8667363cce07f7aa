"""`corrdiff demo`: the whole road on the photographs inside installed packages, on one machine."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import NamedTuple

from rich.table import Table

from corrdiff import metrics
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.codec_directory import load_codec
from corrdiff.images import open_image
from corrdiff.picture import Picture
from pipelines.compress.command import run_compression
from pipelines.compress.config import CompressConfig
from pipelines.decompress.command import run_decompression
from pipelines.decompress.config import DecompressConfig
from pipelines.display.contact_sheet import Panel, side_by_side
from pipelines.display.progress import console
from pipelines.inputs import sources
from pipelines.runtime.session import ray_session
from pipelines.shards.command import run_sharding
from pipelines.shards.config import ShardConfig
from pipelines.tracking.tracker import tracking_uri
from pipelines.train import command as train_command
from pipelines.train.config import TrainConfig

PHASE1_CROPS, PHASE2_CROPS = 5000, 1600
QUALITIES = (1, 4, 7)
FIDELITIES = (1.0, 0.5, 0.0)
REPORT_QUALITY = 4


class Measured(NamedTuple):
    """One held-out picture at one quality."""

    key: str
    quality: int
    bytes: int
    """Of the file at fidelity 1."""
    bpp: float
    psnr_privileged_db: float
    psnr_uncorrected_db: float
    psnr_corrected_db: tuple[float, ...]
    """At FIDELITIES."""


def demo(out: Path) -> list[Measured]:
    """Run everything under `out`; returns what was measured on the pictures that were not trained on."""
    started = time.monotonic()
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{out / 'mlflow.db'}")
    config = TrainConfig(
        shards=str(out / "shards"), storage=str(out / "runs"), name="demo", preset="tiny",
        crops_total=PHASE1_CROPS, batch=8, checkpoint_every=2000, validate_every=2000,
    )  # fmt: skip
    with ray_session():
        _headline("1. shards of training crops")
        run_sharding("sample:train", config.shards, ShardConfig(crop=192, stride=96, pictures_per_shard=1))
        _headline("2. phase 1: all networks")
        codec = train_command.run_phase(config, "phase1")
        _headline("3. phase 2: the privileged decoder")
        config = dataclasses.replace(config, init_from=codec, crops_total=PHASE2_CROPS)
        codec = train_command.run_phase(config, "phase2")
        _headline("4. a dataset to bitstreams, and back")
        compressed = str(out / "compressed")
        settings = CompressConfig(quality=REPORT_QUALITY, unit=3)
        run_compression("sample:", compressed, codec, settings)
        run_decompression(compressed, str(out / "decompressed"), codec, DecompressConfig())
    _headline("5. two pictures that were not trained on")
    measured = measure(load_codec(codec), out / "report.png")
    _print_table(measured)
    console.print(f"side by side:        {out / 'report.png'}")
    console.print(f"codec:               {codec}")
    console.print(f"compressed dataset:  {compressed}")
    console.print(f"MLflow:              mlflow ui --backend-store-uri {tracking_uri()}")
    console.print(f"the demonstration took {time.monotonic() - started:.0f} s")
    return measured


def measure(codec: CorrDiffCodec, report: Path) -> list[Measured]:
    """Encode and decode the held-out samples at every quality and fidelity; draws `report`."""
    measured: list[Measured] = []
    rows: list[list[Panel]] = []
    for source in sources.list_pictures("sample:held-out"):
        original = open_image(sources.read(source)).pixels
        for quality in QUALITIES:
            row, panels = _measure_one(codec, source.key, original, quality)
            measured.append(row)
            if quality == REPORT_QUALITY:
                rows += [panels[:3], panels[3:]]
    report.write_bytes(side_by_side(rows))
    return measured


def _measure_one(codec: CorrDiffCodec, key: str, original: Picture, quality: int) -> tuple[Measured, list[Panel]]:
    encoded = [codec.compress_batch([original], Settings(quality, fidelity))[0] for fidelity in FIDELITIES]
    best = encoded[0]
    privileged, uncorrected = (codec.decompress(best.data, d) for d in ("privileged", "uncorrected"))
    corrected = [codec.decompress(e.data) for e in encoded]
    row = Measured(
        key, quality, len(best.data), best.bpp, metrics.psnr(original, privileged),
        metrics.psnr(original, uncorrected), tuple(metrics.psnr(original, c) for c in corrected),
    )  # fmt: skip
    panels = [
        Panel(f"{key}, original", original),
        Panel(f"D alone, {row.psnr_privileged_db:.1f} dB", privileged),
        Panel(f"uncorrected, {row.psnr_uncorrected_db:.1f} dB", uncorrected),
    ]
    for fidelity, picture, e, psnr in zip(FIDELITIES, corrected, encoded, row.psnr_corrected_db, strict=True):
        panels.append(Panel(f"fidelity {fidelity:g}, {e.bpp:.2f} bpp, {psnr:.1f} dB", picture))
    return row, panels


def _print_table(measured: list[Measured]) -> None:
    table = Table(title="held-out pictures, real bytes; PSNR in dB", title_justify="left")
    corrected = [f"fidelity {f:g}" for f in FIDELITIES]
    for column in ("picture", "quality", "bytes", "bpp", "D", "uncorrected", *corrected):
        table.add_column(column, justify="left" if column == "picture" else "right")
    for m in measured:
        values = (m.psnr_privileged_db, m.psnr_uncorrected_db, *m.psnr_corrected_db)
        table.add_row(m.key, str(m.quality), f"{m.bytes:,}", f"{m.bpp:.3f}", *(f"{v:.2f}" for v in values))
    console.print(table)


def _headline(text: str) -> None:
    console.print(f"\n{text}", style="bold")
