"""A compression in MLflow: its run, its numbers, and its drawings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from corrdiff.codec_directory import load_codec, read_config
from corrdiff.errors import JobError
from corrdiff.images import ImageError, open_image
from corrdiff.picture import Picture
from pipelines.compress.claim import CompressJob
from pipelines.compress.finish import Shown
from pipelines.dataset.format import SUMMARY, unit_of
from pipelines.dataset.index import Member, read_member
from pipelines.dataset.summary import Summary
from pipelines.display import curves
from pipelines.display.contact_sheet import Panel, side_by_side
from pipelines.files import storage
from pipelines.inputs import units
from pipelines.inputs.units import PlannedUnits
from pipelines.tracking.lineage import CODEC, FINGERPRINT, KIND, lineage_tags
from pipelines.tracking.tracker import RunSpec, Tracker, tracking_uri


def begin(job: CompressJob, say: Callable[[str], None]) -> Tracker:
    """One MLflow run, linked to the codec and its training runs."""
    fingerprint = str(job.plan.identity["codec"])
    tags = {
        KIND: "compress", FINGERPRINT: fingerprint, CODEC: job.codec,
        **lineage_tags(read_config(job.codec)[2]),
    }  # fmt: skip
    params = {
        "images": job.images, "out": job.out, "codec": job.codec, "fingerprint": fingerprint,
        **dataclasses.asdict(job.config),
    }  # fmt: skip
    return Tracker(tracking_uri(), RunSpec("compress", tags, params), job.out, say)


def send(job: CompressJob, summary: Summary, shown: Shown, tracker: Tracker) -> None:
    """Send what a compression came to, and what is drawn of it."""
    import ray

    values = {name: float(getattr(summary, name)) for name in ("pictures", "failures", "bytes")}
    values["left_out"] = float(sum(summary.left_out.values()))
    if summary.bpp is not None:
        values["bpp"] = summary.bpp
    for name, stats in summary.percentiles.items():
        values |= {f"{name}/{k}": v for k, v in stats.items()}
    tracker.metrics(values, step=summary.pictures)
    for name, data in _drawings(shown).items():
        tracker.artifact(name, data)
    if shown.failures:
        tracker.artifact("failures.json", storage.to_json(shown.failures))
    worst = ray.get(ray.remote(_draw_worst).options(num_cpus=0).remote(job, shown.worst))
    if worst:
        tracker.artifact("worst.png", worst)
    tracker.artifact(SUMMARY, storage.to_json(dataclasses.asdict(summary)))


def _drawings(shown: Shown) -> dict[str, bytes]:
    """A histogram of each metric, and rate against quality."""
    from matplotlib.figure import Figure

    drawings: dict[str, bytes] = {}
    if shown.values:
        figure = Figure(figsize=(4 * len(shown.values), 3), layout="constrained")
        each = np.atleast_1d(figure.subplots(1, len(shown.values)))
        for axes, (name, values) in zip(each, shown.values.items(), strict=True):
            axes.hist(values[np.isfinite(values)], bins=40)
            axes.set(xlabel=name, ylabel="pictures")
        drawings["histograms.png"] = curves.png(figure)
    if {"bpp", "psnr_db"} <= shown.values.keys():
        figure = Figure(figsize=(5, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(shown.values["bpp"], shown.values["psnr_db"], ".", markersize=3)
        axes.set(xlabel="bpp", ylabel="PSNR, dB")
        axes.grid(alpha=0.3)
        drawings["rate_quality.png"] = curves.png(figure)
    return drawings


def _draw_worst(job: CompressJob, rows: list[dict[str, Any]]) -> bytes | None:
    """A Ray task: originals beside what their files decode to; None where no original can be read again."""
    codec = load_codec(job.codec)
    if codec.fingerprint.hex() != job.fingerprint[: 2 * len(codec.fingerprint)]:
        return None
    panels: list[list[Panel]] = []
    for row in rows:
        original = _original(job.planned, row)
        if original is None or original.shape[:2] != (row["height"], row["width"]):
            continue
        data = read_member(job.out, Member(row["key"], row["part"], row["offset"], row["bytes"]))
        label = f"{row['psnr_db']:.1f} dB, {row['bpp']:.3f} bpp"
        panels.append([Panel(row["key"][-40:], original), Panel(label, codec.decompress(data))])
    return side_by_side(panels) if panels else None


def _original(planned: Sequence[PlannedUnits], row: dict[str, Any]) -> Picture | None:
    try:
        found = units.read_picture(units.read_unit(planned, unit_of(row["part"])), row["key"])
        return open_image(found.data).pixels if found and found.data else None
    except (OSError, ImageError, JobError):
        return None
