"""What the first worker does beside training: progress for whoever watches, MLflow, pictures, the export."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from typing import Any

import numpy as np
import torch

from corrdiff import metrics
from corrdiff.checkpoint import load_networks, read_config
from corrdiff.codec import CorrDiffCodec, Picture, Settings
from corrdiff.images import open_image
from pipelines import ingest, storage
from pipelines.config import PhaseName, TrainConfig
from pipelines.export import codec_config, export_model
from pipelines.progress import console, display
from pipelines.report import Panel, side_by_side
from pipelines.shards import Manifest
from pipelines.tracking import RunSpec, Tracker, lineage_tags
from pipelines.trainer import StepResult, Trainer

PREVIEW_PICTURES = 3
PREVIEW_QUALITIES = (1, 4, 7)


class Board:
    """A Ray actor between rank 0 and whoever watches."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {"images": 0, "note": "", "failed": "", "said": [], "seconds": 0.0}

    def write(self, **values: Any) -> None:
        self._state.update(values)

    def say(self, sentence: str) -> None:
        self._state["said"].append(sentence)

    def read(self) -> dict[str, Any]:
        return self._state


def watch(board: Any, title: str, total: int, stop: threading.Event) -> None:
    """Show what rank 0 writes on the board, until told to stop."""
    import ray

    said = 0
    with display(title, total, "crops") as shown:
        while True:
            ended = stop.wait(0.5)
            try:
                state = ray.get(board.read.remote(), timeout=10)
            except ray.exceptions.RayError:  # busy, or going away: the main thread reports that
                if ended:
                    return
                continue
            for sentence in state["said"][said:]:
                console.print(sentence)
            said = len(state["said"])
            if state["images"]:
                shown.update(min(state["images"], total), state["note"])
            if ended:
                return


class Observer:
    """Lives on rank 0 for the length of a phase."""

    def __init__(self, loop: dict[str, Any], config: TrainConfig, phase: PhaseName, run: str) -> None:
        self.config, self.phase, self.run, self.board = config, phase, run, loop["board"]
        self.started = time.monotonic()
        self.window: list[tuple[StepResult, int, float]] = []
        self.window_started = self.started
        record_uri = storage.join(run, "mlflow.json")
        known = storage.read_json(record_uri)["run_id"] if storage.exists(record_uri) else None
        tags = {"corrdiff.kind": phase, "corrdiff.run": run}
        if config.init_from:
            _, digest, provenance = read_config(config.init_from)
            tags["corrdiff.init_fingerprint"] = digest
            tags |= lineage_tags(provenance)
        params = {**dataclasses.asdict(config), **_flat(codec_config(config).to_dict(), "codec")}
        spec = RunSpec(f"{config.name}-{phase}", tags, params, known)
        self.tracker = Tracker(loop["tracking"], spec, run, self.say)
        self.record_uri, self.mlflow_run = record_uri, known

    def say(self, sentence: str) -> None:
        self.board.say.remote(sentence)

    def remember_mlflow_run(self, timeout_s: float) -> None:
        """Write down which MLflow run this is, as soon as the server has said so: a restart goes on with it."""
        if self.mlflow_run is None:
            self.mlflow_run = self.tracker.run_id(timeout_s)
            if self.mlflow_run is not None:
                storage.write_json(self.record_uri, {"run_id": self.mlflow_run})

    def after_step(self, trainer: Trainer, result: StepResult, rows: int, waited_s: float, last: bool) -> None:
        import psutil

        self.window.append((result, rows, waited_s))
        now = time.monotonic()
        seen = trainer.progress.images_seen
        has_lpips = self.config.lpips_weight > 0  # without it the term is absent, not zero
        names = [n for n in trainer.term_names if n != "lpips" or has_lpips]
        note = " ".join(f"{n} {v:.3f}" for n, v in zip(names[:3], result.terms, strict=False))
        self.board.write.remote(images=seen, note=note, seconds=now - self.started)
        self.remember_mlflow_run(timeout_s=0.0)
        if trainer.progress.optimizer_steps % self.config.log_every and not last:
            return
        elapsed = max(now - self.window_started, 1e-9)
        weights = [rows for _, rows, _ in self.window]
        means = np.average([r.terms for r, _, _ in self.window], axis=0, weights=weights)
        values = {name: value for name, value in zip(trainer.term_names, means.tolist(), strict=True) if name in names}
        for name in [n for n in values if n.startswith("mse_")]:
            values[f"psnr_{name.removeprefix('mse_')}_db"] = 10 * math.log10(4 / max(values[name], 1e-12))
        values |= {
            "lr": result.lr,
            "grad_norm": float(np.mean([r.grad_norm for r, _, _ in self.window])),
            "images_per_s": sum(weights) / elapsed,
            "waiting_share": sum(w for _, _, w in self.window) / elapsed,
            "cpu_percent": psutil.cpu_percent(),
            "epoch": float(trainer.progress.cursor.epoch),
        }
        if trainer.device.type == "cuda":
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
            with contextlib.suppress(Exception):  # where the driver's library does not say, the metric is absent
                values["gpu_percent"] = float(torch.cuda.utilization())
        self.tracker.metrics(values, step=seen)
        self.window, self.window_started = [], now

    def preview(self, trainer: Trainer, manifest: Manifest) -> None:
        """Original, D(y_hat), uncorrected and corrected at several qualities, side by side, in MLflow."""
        model = trainer.averaged_model()
        tables = model.entropy.freeze() if self.phase == "phase1" else load_networks(str(self.config.init_from))[1]
        codec = CorrDiffCodec(model, tables, bytes(8))
        originals = preview_crops(self.config, manifest)
        rows, values = [], {}
        for q in PREVIEW_QUALITIES:
            row = []
            encoded = codec.compress_batch(originals, Settings(quality=q, fidelity=1.0))
            files = [e.data for e in encoded]
            privileged, uncorrected = (codec.decompress_batch(files, d) for d in ("privileged", "uncorrected"))
            psnr_d = [metrics.psnr(o, d) for o, d in zip(originals, privileged, strict=True)]
            psnr_c = [metrics.psnr(o, e.reconstruction) for o, e in zip(originals, encoded, strict=True)]
            values[f"preview/q{q}/bpp"] = float(np.mean([e.bpp for e in encoded]))
            values[f"preview/q{q}/psnr_decoder_db"] = float(np.mean(psnr_d))
            values[f"preview/q{q}/psnr_corrected_db"] = float(np.mean(psnr_c))
            for o, e, d, u in zip(originals, encoded, privileged, uncorrected, strict=True):
                row += [
                    Panel(f"original, q{q}", o), Panel("D", d), Panel("uncorrected", u),
                    Panel(f"{e.bpp:.2f} bpp", e.reconstruction),
                ]  # fmt: skip
            rows.append(row)
        seen = trainer.progress.images_seen
        self.tracker.metrics(values, step=seen)
        self.tracker.artifact(f"previews/images-{seen:012d}.png", side_by_side(rows))

    def export(self, trainer: Trainer) -> None:
        self.remember_mlflow_run(timeout_s=60.0)
        digest = export_model(
            trainer.averaged_model(), self.config, self.phase, trainer.progress, self.mlflow_run,
            storage.join(self.run, "codec"),
        )  # fmt: skip
        self.tracker.tags({"corrdiff.fingerprint": digest, "corrdiff.codec": storage.join(self.run, "codec")})

    def close(self, status: str) -> None:
        self.tracker.close(status)


def preview_crops(config: TrainConfig, manifest: Manifest) -> list[Picture]:
    """The first crops of the first shard, the same at every preview."""
    members = ingest.shard_members(config.shards, manifest.shards[0])[:PREVIEW_PICTURES]
    return [open_image(data).pixels for _, data in members]


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}.{key}")
        else:
            flat[f"{prefix}.{key}"] = value
    return flat
