"""What the first worker does beside training: MLflow, pictures, the export, and what the board is to show."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import numpy as np
import psutil
import torch

from corrdiff.codec_directory import CONFIG_FILE, read_config, save_codec
from pipelines.display.contact_sheet import Panel, side_by_side
from pipelines.files import storage
from pipelines.tracking.lineage import CODEC, FINGERPRINT, KIND, lineage_tags
from pipelines.tracking.tracker import RunSpec, Tracker, record_run, recorded_run
from pipelines.train import validation
from pipelines.train.config import TrainConfig
from pipelines.train.costs import Costs
from pipelines.train.phases.base import Phase, codec_config, provenance
from pipelines.train.run_directory import EXPORTED_CODEC, VALIDATION_FILE
from pipelines.train.schedule import place_at
from pipelines.train.trainer import StepResult, Trainer


class Observer:
    """Lives on rank 0 for the length of a phase."""

    def __init__(self, board: Any, tracking: str, config: TrainConfig, phase: Phase, run: str) -> None:
        self.config, self.phase, self.run, self.board = config, phase, run, board
        self.window: list[tuple[StepResult, int, tuple[str, ...]]] = []
        self.cost_note = ""
        self.mlflow_run = recorded_run(run)
        tags = {KIND: phase.name, "corrdiff.run": run}
        if config.init_from:
            _, tags["corrdiff.init_fingerprint"], before = read_config(config.init_from)
            tags |= lineage_tags(before)
        params = {**dataclasses.asdict(config), **_flat(codec_config(config).to_dict(), "codec")}
        spec = RunSpec(f"{config.name}-{phase.name}", tags, params, self.mlflow_run)
        self.tracker = Tracker(tracking, spec, run, self.say)
        self.measured_uri = storage.join(run, VALIDATION_FILE)
        self.measured: list[dict[str, float]] = (
            storage.read_json(self.measured_uri) if storage.exists(self.measured_uri) else []
        )

    def say(self, sentence: str) -> None:
        """Have people told."""
        self.board.say.remote(sentence)

    def remember_mlflow_run(self, timeout_s: float) -> None:
        """Write down which MLflow run this is, as soon as the server has said so: a restart goes on with it."""
        if self.mlflow_run is None:
            self.mlflow_run = self.tracker.run_id(timeout_s)
            if self.mlflow_run is not None:
                record_run(self.run, self.mlflow_run)

    def after_step(self, trainer: Trainer, result: StepResult, rows: int) -> None:
        """Show how far the run is."""
        stretches = self.phase.stretches(self.config)
        stretch = place_at(self.config, stretches, trainer.progress.crops_seen - rows).stretch
        # What is not computed is absent, not zero.
        names = tuple(n for n in stretch.terms if n != "lpips" or self.config.lpips_weight > 0)
        self.window.append((result, rows, names))
        terms = dict(zip(self.phase.terms, result.terms, strict=True))
        where = f"{stretch.name}: " if len(stretches) > 1 else ""
        note = " ".join(f"{name} {terms[name]:.3f}" for name in names[:3])
        self.board.show.remote(trainer.progress.crops_seen, f"{where}{note}{self.cost_note}")
        self.remember_mlflow_run(timeout_s=0.0)

    def after_window(self, trainer: Trainer, costs: Costs) -> None:
        """Record a point of each curve: the mean over the steps since the last one."""
        self.board.spend.remote(costs)
        values = self._mean_terms()
        for name in [n for n in values if n.startswith("mse_")]:
            values[f"psnr_{name.removeprefix('mse_')}_db"] = 10 * math.log10(4 / max(values[name], 1e-12))
        spent = costs.metrics()
        values |= {
            "lr": self.window[-1][0].lr,
            "grad_norm": float(np.mean([r.grad_norm for r, _, _ in self.window])),
            "epoch": float(trainer.progress.cursor.epoch),
            "cpu_percent": psutil.cpu_percent(),
            **spent,
        }
        if trainer.device.type == "cuda":
            with contextlib.suppress(Exception):  # where the driver's library does not say, the metric is absent
                values["gpu_percent"] = float(torch.cuda.utilization())
        hfu = f", HFU {spent['hfu']:.0%}" if "hfu" in spent else ""
        self.cost_note = f", waiting {spent['waiting_share']:.1%}{hfu}, {spent['peak_memory_gib']:.1f} GiB"
        self.tracker.metrics(values, step=trainer.progress.crops_seen)
        self.window = []

    def _mean_terms(self) -> dict[str, float]:
        """Average each term over the steps in which it was computed; a window may lie in two stretches."""
        means: dict[str, float] = {}
        for i, name in enumerate(self.phase.terms):
            found = [(result.terms[i], rows) for result, rows, names in self.window if name in names]
            if found:
                means[name] = float(np.average([v for v, _ in found], weights=[rows for _, rows in found]))
        return means

    def validated(self, trainer: Trainer, values: dict[str, float], rows: list[list[Panel]]) -> None:
        """Record what was measured on held-out crops, with pictures, and keep it for the curves of a restart."""
        seen = trainer.progress.crops_seen
        self.tracker.metrics(values, step=seen)
        self.tracker.artifact(f"previews/crops-{seen:012d}.png", side_by_side(rows))
        self.measured.append(values)
        storage.write_json(self.measured_uri, self.measured)
        self.tracker.artifact(f"curves/crops-{seen:012d}.png", validation.draw(self.measured))

    def export(self, trainer: Trainer) -> None:
        """Write the codec of the averaged weights, and say in MLflow which it is."""
        self.remember_mlflow_run(timeout_s=60.0)
        out = storage.join(self.run, EXPORTED_CODEC)
        model, tables = trainer.averaged_codec()
        known = provenance(self.phase, self.config, trainer.progress.crops_seen, self.mlflow_run)
        digest = save_codec(model, tables, out, known, overwrite=True)
        self.tracker.artifact(f"codec/{CONFIG_FILE}", storage.read_bytes(storage.join(out, CONFIG_FILE)))
        self.tracker.tags({FINGERPRINT: digest, CODEC: out})

    def close(self, status: str) -> None:
        """End the run in MLflow, "FINISHED" or "FAILED"."""
        self.tracker.close(status)


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Nested values by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}.{key}")
        else:
            flat[f"{prefix}.{key}"] = value
    return flat
