"""A dataset -> bitstreams and a table of metrics, in parallel on Ray Data.

    OUT/plan.json                  which picture belongs to which unit, the codec and the settings; written first
    OUT/part-00000-<hash>.tar      WebDataset: KEY.crdf, KEY.json
    OUT/part-00000-<hash>.parquet  a row for each picture, failures too
    OUT/_units/00000.json          written last: names, sizes and hashes of the unit's files; without it nothing is done
    OUT/summary.json               totals, percentiles, failures

Files are named by their content and the first record of a unit wins, so doing a unit twice is harmless and running
again does only what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import tarfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff import metrics
from corrdiff.checkpoint import load_codec, read_config
from corrdiff.codec import Encoded, Picture, Settings
from corrdiff.errors import JobError, UsageError
from corrdiff.images import ImageError, OpenedImage, open_image
from pipelines import pictures, storage
from pipelines.config import CompressConfig
from pipelines.pictures import Source
from pipelines.ray_session import cluster_cpus, cluster_gpus, own_errors
from pipelines.tar import add_member
from pipelines.tracking import RunSpec, Tracker, lineage_tags, tracking_uri

PLAN, SUMMARY, UNITS = "plan.json", "summary.json", "_units"
FORMAT = "corrdiff-dataset-1"
QUALITY_SOURCE = "encoder replay"
"""Quality is of the picture that the encoder's own run of the decoder gave."""

COLUMNS = pa.schema([
    ("key", pa.string()), ("source", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("bytes", pa.int64()),
    ("bpp", pa.float64()), ("psnr_db", pa.float64()), ("ms_ssim", pa.float64()), ("lpips", pa.float64()),
    ("texture_error", pa.float64()), ("quality_source", pa.string()), ("status", pa.string()), ("error", pa.string()),
])  # fmt: skip

METRICS = ("bpp", "psnr_db", "ms_ssim", "lpips", "texture_error")
PERCENTILES = (5, 25, 50, 75, 95)


class Progress(NamedTuple):
    """After a unit."""

    pictures_done: int
    pictures_total: int
    megapixels: float
    bytes: int
    failures: int


@dataclasses.dataclass(frozen=True)
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
    codec_fingerprint: str


class Estimate(NamedTuple):
    """What `--dry-run` says."""

    pictures: int
    input_bytes: int
    sampled: int
    seconds: float
    output_bytes: int


def compress_dataset(images: str, out: str, codec: str, config: CompressConfig) -> Iterator[Progress | Summary]:
    """Compress pictures in parallel on Ray; yields progress, and the summary at the end.

    Raises:
        UsageError: no pictures, no codec, or `out` holds another compression.
        JobError: every picture failed.
    """
    codec, out = storage.absolute(codec), storage.absolute(out)
    _, fingerprint, provenance = read_config(codec)
    plan = _claim(images, out, fingerprint, config)
    units = [[Source(*s) for s in unit] for unit in plan["units"]]
    total = sum(len(unit) for unit in units)
    records = unit_records(out)
    missing = [i for i in range(len(units)) if i not in records]
    yield _progress(records, total)
    started = time.monotonic()
    if missing:
        rows = [{"unit": i, "sources": json.dumps(units[i])} for i in missing]
        for record in _run_units(rows, out, codec, config):
            records.setdefault(record["unit"], record)
            yield _progress(records, total)
    seconds = time.monotonic() - started
    summary, table = _summarise(out, records, fingerprint)
    storage.write_json(storage.join(out, SUMMARY), dataclasses.asdict(summary))
    if missing:
        _track(summary, table, images, out, codec, fingerprint, provenance, config, seconds, records, missing)
    yield summary
    if summary.failures == summary.pictures:
        raise JobError(f"not one of {summary.pictures} pictures could be compressed: {summary.failure_reasons}")


def estimate(images: str, codec: str, config: CompressConfig, workers: int, sample: int = 3) -> Estimate:
    """Count the pictures and time a few of them, to say what the whole would take."""
    sources = pictures.list_pictures(images)
    loaded = load_codec(codec)
    settings = Settings(config.quality, config.fidelity, config.steps)
    chosen = sources[:: max(1, len(sources) // sample)][:sample]
    started, read, written, good = time.monotonic(), 0, 0, 0
    for source in chosen:
        try:
            data = pictures.read(source)
            image = open_image(data, config.max_pixels)
        except (ImageError, OSError):
            continue
        written += len(loaded.compress_batch([image.pixels], settings)[0].data)
        read += len(data)
        good += 1
    seconds = time.monotonic() - started
    if not good:
        raise UsageError(f"none of {len(chosen)} sampled pictures at {images} could be opened")
    scale = len(sources) / good
    return Estimate(len(sources), round(read * scale), good, seconds * scale / workers, round(written * scale))


def _claim(images: str, out: str, fingerprint: str, config: CompressConfig) -> dict[str, Any]:
    """The plan of `out`: the one that is there if it is of the same codec and settings, else a new one."""
    settings = {"quality": config.quality, "fidelity": config.fidelity, "steps": config.steps, "unit": config.unit}
    identity = {"codec": fingerprint, "images": storage.absolute(images) if ":" not in images else images, **settings}
    uri = storage.join(out, PLAN)
    if storage.exists(uri):
        plan: dict[str, Any] = storage.read_json(uri)
        found = plan["identity"]
        if found != identity:
            differing = sorted(k for k in identity if found.get(k) != identity[k])
            said = "; ".join(f"{k}: {found.get(k)!r} there, {identity[k]!r} now" for k in differing)
            raise UsageError(f"{out} holds another compression ({said}); choose another directory")
        return plan
    sources = pictures.list_pictures(images)
    units = [sources[i : i + config.unit] for i in range(0, len(sources), config.unit)]
    plan = {"format": FORMAT, "identity": identity, "units": units}
    storage.write_json(uri, plan)
    return plan


def _run_units(rows: list[dict[str, Any]], out: str, codec: str, config: CompressConfig) -> Iterator[dict[str, Any]]:
    import ray.data
    from ray.data import ActorPoolStrategy

    gpus = cluster_gpus() if config.device != "cpu" else 0
    if config.device == "cuda" and not gpus:
        raise UsageError("--device cuda, but the cluster has no GPU")
    most = min(len(rows), config.workers or (gpus or cluster_cpus()))
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        UnitCompressor,
        fn_constructor_args=(out, codec, config, "cuda" if gpus else "cpu"),
        batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=1,
        num_gpus=1 if gpus else 0,
    )
    with own_errors():
        for row in dataset.iter_rows():
            record: dict[str, Any] = json.loads(row["record"])
            yield record


class UnitCompressor:
    """A Ray Data actor: a codec that turns units of pictures into parts."""

    def __init__(self, out: str, codec: str, config: CompressConfig, device: str) -> None:
        import torch

        if device == "cpu":
            torch.set_num_threads(1)  # an actor for each core
        self.out, self.config = out, config
        self.codec = load_codec(codec, device, config.precision)
        weights = metrics.lpips_weights(config.lpips_weights)
        self.lpips = metrics.load_lpips(weights) if weights else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        records = [
            self.do_unit(int(unit), [Source(*s) for s in json.loads(sources)])
            for unit, sources in zip(batch["unit"], batch["sources"], strict=True)
        ]
        return {"record": [json.dumps(record) for record in records]}

    def do_unit(self, unit: int, sources: list[Source]) -> dict[str, Any]:
        """Read, encode, write the part's files, then its record; returns the record that counts."""
        record_uri = storage.join(self.out, UNITS, f"{unit:05d}.json")
        started = time.time()
        opened: dict[int, OpenedImage] = {}
        rows: dict[int, dict[str, Any]] = {}
        for i, source in enumerate(sources):
            try:
                opened[i] = open_image(pictures.read(source), self.config.max_pixels)
            except (ImageError, OSError, JobError) as error:
                rows[i] = _failed_row(source, str(error))
        files: dict[int, bytes] = {}
        for indices in _batches(opened, self.config.batch):
            for i, encoded in zip(indices, self._encode([opened[i].pixels for i in indices]), strict=True):
                files[i] = encoded.data
                rows[i] = _row(sources[i], opened[i].pixels, encoded, self.lpips)
        tar = _tar((sources[i], files[i], rows[i], opened[i].changes) for i in sorted(files))
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([rows[i] for i in range(len(sources))], COLUMNS), buffer)
        names = {}
        for extension, data in (("tar", tar), ("parquet", buffer.getvalue())):
            digest = hashlib.sha256(data).hexdigest()
            name = f"part-{unit:05d}-{digest[:12]}.{extension}"
            storage.write_bytes(storage.join(self.out, name), data)
            names[extension] = {"name": name, "bytes": len(data), "sha256": digest}
        good = [rows[i] for i in sorted(files)]
        record = {
            "unit": unit, "files": names, "pictures": len(sources), "failures": len(sources) - len(files),
            "bytes": sum(r["bytes"] for r in good), "pixels": sum(r["width"] * r["height"] for r in good),
            "started": started, "seconds": time.time() - started,
        }  # fmt: skip
        if storage.exists(record_uri):  # another worker was quicker: its files count, these are the same or orphans
            first: dict[str, Any] = storage.read_json(record_uri)
            return first
        storage.write_json(record_uri, record)
        return record

    def _encode(self, images: list[Picture]) -> list[Encoded]:
        config = self.config
        return self.codec.compress_batch(images, Settings(config.quality, config.fidelity, config.steps))


def _batches(opened: dict[int, OpenedImage], size: int) -> Iterator[list[int]]:
    """Indices of pictures of one size, a few at a time."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, image in opened.items():
        by_shape.setdefault(image.pixels.shape, []).append(i)
    for indices in by_shape.values():
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def _row(source: Source, original: Picture, encoded: Encoded, lpips: Any) -> dict[str, Any]:
    height, width = original.shape[:2]
    picture = encoded.reconstruction
    psnr = metrics.psnr(original, picture)
    return {
        "key": source.key, "source": source.uri, "width": width, "height": height, "bytes": len(encoded.data),
        "bpp": metrics.bits_per_pixel(len(encoded.data), height, width),
        "psnr_db": psnr if math.isfinite(psnr) else None,
        "ms_ssim": metrics.ms_ssim(original, picture),
        "lpips": metrics.lpips_distance(original, picture, lpips) if lpips else None,
        "texture_error": metrics.texture_error(original, picture),
        "quality_source": QUALITY_SOURCE, "status": "ok", "error": None,
    }  # fmt: skip


def _failed_row(source: Source, reason: str) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS.names)
    return {**row, "key": source.key, "source": source.uri, "status": "failed", "error": reason}


def _tar(members: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for source, data, row, changes in members:
            described = {
                "key": source.key, "source": source.uri, "width": row["width"], "height": row["height"],
                "changes": list(changes),
            }  # fmt: skip
            add_member(tar, f"{source.key}.crdf", data)
            add_member(tar, f"{source.key}.json", json.dumps(described).encode())
    return buffer.getvalue()


def unit_records(out: str) -> dict[int, dict[str, Any]]:
    """The records of the units that are done."""
    directory = storage.join(out, UNITS)
    names = [n for n in storage.list_names(directory) if n.endswith(".json")]
    records = (storage.read_json(storage.join(directory, name)) for name in names)
    return {record["unit"]: record for record in records}


def _progress(records: dict[int, dict[str, Any]], total: int) -> Progress:
    values = records.values()
    return Progress(
        sum(r["pictures"] for r in values), total, sum(r["pixels"] for r in values) / 1e6,
        sum(r["bytes"] for r in values), sum(r["failures"] for r in values),
    )  # fmt: skip


def _table(out: str, records: dict[int, dict[str, Any]]) -> pa.Table:
    parts = [
        pq.read_table(io.BytesIO(storage.read_bytes(storage.join(out, records[i]["files"]["parquet"]["name"]))))
        for i in sorted(records)
    ]
    return pa.concat_tables(parts)


def _summarise(out: str, records: dict[int, dict[str, Any]], fingerprint: str) -> tuple[Summary, pa.Table]:
    table = _table(out, records)
    percentiles: dict[str, dict[str, float]] = {}
    for name in METRICS:
        values = np.array(table.column(name).drop_null().to_pylist(), dtype=np.float64)
        if len(values):
            percentiles[name] = {"mean": float(values.mean())} | {
                f"p{p}": float(np.percentile(values, p)) for p in PERCENTILES
            }
    reasons: dict[str, int] = {}
    for status, error in zip(table.column("status").to_pylist(), table.column("error").to_pylist(), strict=True):
        if status != "ok":
            reasons[error] = reasons.get(error, 0) + 1
    size, pixels = (sum(r[k] for r in records.values()) for k in ("bytes", "pixels"))
    failures = sum(r["failures"] for r in records.values())
    bpp = 8 * size / pixels if pixels else None
    return Summary(len(table), failures, size, pixels, bpp, percentiles, reasons, fingerprint), table


def _track(
    summary: Summary, table: pa.Table, images: str, out: str, codec: str, fingerprint: str, provenance: dict[str, Any],
    config: CompressConfig, seconds: float, records: dict[int, dict[str, Any]], done: list[int],
) -> None:  # fmt: skip
    """One MLflow run: totals, percentiles, the table, linked to the codec and its training runs."""
    from pipelines.progress import console

    tags = {
        "corrdiff.kind": "compress", "corrdiff.fingerprint": fingerprint, "corrdiff.codec": codec,
        **lineage_tags(provenance),
    }  # fmt: skip
    params = {"images": images, "out": out, "codec": codec, "fingerprint": fingerprint, **dataclasses.asdict(config)}
    tracker = Tracker(tracking_uri(), RunSpec("compress", tags, params), out, console.print)
    megapixels = sum(records[i]["pixels"] for i in done) / 1e6
    values = {"pictures": float(summary.pictures), "failures": float(summary.failures), "bytes": float(summary.bytes)}
    if summary.bpp is not None:
        values["bpp"] = summary.bpp
    values["megapixels_per_s"] = megapixels / max(seconds, 1e-9)
    for name, stats in summary.percentiles.items():
        values |= {f"{name}/{k}": v for k, v in stats.items()}
    tracker.metrics(values)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    tracker.artifact("metrics.parquet", buffer.getvalue())
    tracker.tags({"mlflow.loggedArtifacts": json.dumps([{"path": "metrics.parquet", "type": "table"}])})
    tracker.artifact(SUMMARY, json.dumps(dataclasses.asdict(summary), indent=1).encode())
    tracker.close()
