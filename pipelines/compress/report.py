"""What came of a compression: the summary, the index, and the run in MLflow with its pictures."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corrdiff.codec_directory import load_codec, read_config
from corrdiff.errors import JobError, UsageError
from corrdiff.images import ImageError, open_image
from corrdiff.picture import Picture
from pipelines.compress.config import CompressConfig
from pipelines.dataset import format as compressed
from pipelines.dataset.format import INDEX, INDEX_COLUMNS, INDEX_GROUP_ROWS, SUMMARY, Member, Plan
from pipelines.display import curves
from pipelines.display.contact_sheet import Panel, side_by_side
from pipelines.files import storage
from pipelines.files.storage import READERS
from pipelines.inputs import units
from pipelines.tracking.lineage import CODEC, FINGERPRINT, KIND, lineage_tags
from pipelines.tracking.tracker import RunSpec, Tracker, tracking_uri

METRICS = ("bpp", "psnr_db", "ms_ssim", "lpips", "texture_error")
PERCENTILES = (5, 25, 50, 75, 95)
WORST = 4
WORST_PIXELS = 1 << 22
"""Larger pictures are not decoded again to be shown."""
SCATTER_POINTS = 5000
FAILURES_SHOWN = 10_000


@dataclass(frozen=True)
class Summary:
    """A finished compression."""

    pictures: int
    failures: int
    bytes: int
    pixels: int
    bpp: float | None
    """All bits over all pixels; None where every picture failed."""
    percentiles: dict[str, dict[str, float]]
    """Metric -> "mean", "p5" ... "p95"."""
    failure_reasons: dict[str, int]
    """Numbers in a reason are left out, so that like failures count together."""
    qualities: dict[str, int]
    """Pictures of each quality level."""
    codec_fingerprint: str


class Shown(NamedTuple):
    """What of a table is drawn and listed, however many rows it has."""

    values: dict[str, npt.NDArray[np.float64]]
    """Metric -> values of some pictures, the same pictures for each."""
    worst: list[dict[str, Any]]
    """Rows of the pictures with the least PSNR."""
    failures: list[dict[str, Any]]


def read_summary(uri: str) -> Summary | None:
    """None where the compression is not finished."""
    try:
        value = storage.read_json(storage.join(uri, SUMMARY))
    except FileNotFoundError:
        return None
    try:
        return Summary(**value)
    except TypeError as error:
        raise UsageError(f"{uri}/{SUMMARY} is damaged ({error})") from None


def begin(
    images: str, out: str, codec: str, fingerprint: str, config: CompressConfig, say: Callable[[str], None]
) -> Tracker:
    """One MLflow run, linked to the codec and its training runs."""
    tags = {
        KIND: "compress", FINGERPRINT: fingerprint, CODEC: codec,
        **lineage_tags(read_config(codec)[2]),
    }  # fmt: skip
    params = {"images": images, "out": out, "codec": codec, "fingerprint": fingerprint, **dataclasses.asdict(config)}
    return Tracker(tracking_uri(), RunSpec("compress", tags, params), out, say)


def finish(out: str, codec: str, plan: Plan, tracker: Tracker) -> Summary:
    """Index and summary of a compression whose units are all done; everything in MLflow.

    The table of all pictures is looked at by a Ray task: it may be larger than what the driver should hold.
    """
    import ray

    task = ray.remote(_summarise).options(num_cpus=0)
    summary: Summary
    shown: Shown
    summary, shown = ray.get(task.remote(out, plan))
    values = {name: float(getattr(summary, name)) for name in ("pictures", "failures", "bytes")}
    if summary.bpp is not None:
        values["bpp"] = summary.bpp
    for name, stats in summary.percentiles.items():
        values |= {f"{name}/{k}": v for k, v in stats.items()}
    tracker.metrics(values, step=summary.pictures)
    for name, data in _drawings(shown).items():
        tracker.artifact(name, data)
    if shown.failures:
        tracker.artifact("failures.json", storage.to_json(shown.failures))
    worst = ray.get(ray.remote(draw_worst).options(num_cpus=0).remote(out, codec, plan, shown.worst))
    if worst:
        tracker.artifact("worst.png", worst)
    tracker.artifact(SUMMARY, storage.to_json(dataclasses.asdict(summary)))
    return summary


def _summarise(out: str, plan: Plan) -> tuple[Summary, Shown]:
    """A Ray task: read all tables, write the index, remove parts that no record names, write the summary."""
    records = list(compressed.read_records(out, range(plan.units)))

    def read(name: str) -> pa.Table:
        return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(out, name), storage.PATIENT_ATTEMPTS)))

    with ThreadPoolExecutor(READERS) as pool:
        table = pa.concat_tables(pool.map(read, [r.parquet.name for r in records]))
    good = table.filter(pc.equal(table["status"], "ok"))
    failed = table.filter(pc.equal(table["status"], "failed"))
    index = good.select(INDEX_COLUMNS).sort_by("key")
    buffer = io.BytesIO()
    pq.write_table(index, buffer, row_group_size=INDEX_GROUP_ROWS)
    storage.write_bytes(storage.join(out, INDEX), buffer.getvalue(), storage.PATIENT_ATTEMPTS)
    size, pixels = (sum(getattr(r, k) for r in records) for k in ("bytes", "pixels"))
    summary = Summary(
        pictures=len(table), failures=len(failed), bytes=size, pixels=pixels,
        bpp=8 * size / pixels if pixels else None, percentiles=_percentiles(good),
        failure_reasons=_counts(pa.array([re.sub(r"\d[\d,]*", "N", e) for e in failed["error"].to_pylist()])),
        qualities=_counts(good["quality"].cast(pa.string())), codec_fingerprint=plan.identity["codec"],
    )  # fmt: skip
    named = {f.name for r in records for f in (r.tar, r.parquet)}
    for name in storage.list_names(out):  # what a killed or a slower worker left
        if name.startswith("part-") and name not in named:
            storage.remove_tree(storage.join(out, name))
    storage.write_json(storage.join(out, SUMMARY), dataclasses.asdict(summary))
    few = good.take(np.linspace(0, max(len(good) - 1, 0), min(len(good), SCATTER_POINTS)).astype(np.int64))
    values = {name: few[name].to_numpy().astype(np.float64) for name in METRICS if few[name].null_count < len(few)}
    shown = good.filter(pc.less_equal(pc.multiply(good["width"].cast(pa.int64()), good["height"]), WORST_PIXELS))
    worst = shown.filter(pc.is_valid(shown["psnr_db"])).sort_by("psnr_db").slice(0, WORST).to_pylist()
    listed = failed.select(["key", "source", "error"]).slice(0, FAILURES_SHOWN).to_pylist()
    return summary, Shown(values, worst, listed)


def _percentiles(good: pa.Table) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name in METRICS:
        values = good[name].drop_null().to_numpy()
        if len(values):
            points = zip(PERCENTILES, np.percentile(values, PERCENTILES).tolist(), strict=True)
            found[name] = {"mean": float(values.mean())} | {f"p{p}": v for p, v in points}
    return found


def _counts(values: pa.Array) -> dict[str, int]:
    counted = sorted(pc.value_counts(values.drop_null()).to_pylist(), key=lambda c: (-c["counts"], c["values"]))
    return {c["values"]: c["counts"] for c in counted}


def _drawings(shown: Shown) -> dict[str, bytes]:
    """A histogram of each metric, and rate against quality."""
    from matplotlib.figure import Figure

    drawings: dict[str, bytes] = {}

    if shown.values:
        figure = Figure(figsize=(4 * len(shown.values), 3), layout="constrained")
        for axes, (name, values) in zip(
            np.atleast_1d(figure.subplots(1, len(shown.values))), shown.values.items(), strict=True
        ):
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


def draw_worst(out: str, codec: str, plan: Plan, rows: list[dict[str, Any]]) -> bytes | None:
    """A Ray task: originals beside what their files decode to; None where no original can be read again."""
    loaded = load_codec(codec)
    panels: list[list[Panel]] = []
    for row in rows:
        original = _original(storage.join(out, plan.directory), row)
        if original is None or original.shape[:2] != (row["height"], row["width"]):
            continue
        data = compressed.read_member(out, Member(row["key"], row["part"], row["offset"], row["bytes"]))
        label = f"{row['psnr_db']:.1f} dB, {row['bpp']:.3f} bpp"
        panels.append([Panel(row["key"][-40:], original), Panel(label, loaded.decompress(data))])
    return side_by_side(panels) if panels else None


def _original(directory: str, row: dict[str, Any]) -> Picture | None:
    number = int(row["part"].split("-")[1])
    try:
        found = units.read_picture(units.read_unit(directory, number), row["key"])
        return open_image(found.data).pixels if found and found.data else None
    except (OSError, ImageError, JobError):
        return None
