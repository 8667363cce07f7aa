"""Checkpoint -> codec directory: averaged weights and, from phase 1, newly frozen entropy tables."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from corrdiff.codec_directory import load_networks, read_config, save_codec
from corrdiff.config import CodecConfig, preset
from corrdiff.errors import UsageError
from corrdiff.networks.model import CorrDiffModel
from pipelines.files import storage
from pipelines.tracking.tracker import recorded_run
from pipelines.train import checkpoints
from pipelines.train.checkpoints import Progress
from pipelines.train.config import PhaseName, TrainConfig


def export(run: str, out: str, compact: bool = False) -> str:
    """Export the newest checkpoint of a run; returns the codec's fingerprint.

    Args:
        run: STORAGE/NAME (its phase 2 if that has a checkpoint, else phase 1), or STORAGE/NAME/phase1 or phase2.
        out: the codec directory to write.
        compact: write weights of 8 bits.

    Raises:
        UsageError: there is no checkpoint.
    """
    run = storage.absolute(run)
    phases: tuple[PhaseName, ...] = ("phase2", "phase1")
    for root in [run, *(storage.join(run, phase) for phase in phases)]:
        found = checkpoints.latest(storage.join(root, "checkpoints"))
        if found is None:
            continue
        record = storage.read_json(storage.join(root, "run.json"))
        config = TrainConfig(**record["config"])
        phase: PhaseName = record["phase"]
        if phase == "phase2":
            config = dataclasses.replace(config, init_from=storage.join(root, "init-codec"))
        restored = checkpoints.load(found)
        model = model_with(config, phase, restored.tensors["ema"])
        return export_model(model, config, phase, restored.progress, recorded_run(root), storage.absolute(out), compact)
    raise UsageError(f"no finished checkpoint under {run} (looked in checkpoints/, phase2/ and phase1/)")


def model_with(config: TrainConfig, phase: PhaseName, weights: dict[str, Tensor]) -> CorrDiffModel:
    """The whole codec's networks, with the trained ones replaced; `weights` is named as in a checkpoint."""
    if phase == "phase1":
        model = CorrDiffModel(codec_config(config))
    else:
        assert config.init_from is not None
        model = load_networks(config.init_from)[0]
    prefix = "model." if phase == "phase1" else ""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            named[name.removeprefix(prefix)].copy_(value)
    return model


def codec_config(config: TrainConfig) -> CodecConfig:
    return read_config(config.init_from)[0] if config.init_from else preset(config.preset)


def export_model(
    model: CorrDiffModel, config: TrainConfig, phase: PhaseName, progress: Progress, mlflow_run: str | None, out: str,
    compact: bool = False,
) -> str:  # fmt: skip
    """Write a codec directory from networks with averaged weights; returns the fingerprint.

    Phase 2 changes D alone, so it keeps the tables that it started from.
    """
    provenance: dict[str, Any] = {}
    if config.init_from is not None:
        _, start, before = read_config(config.init_from)
        provenance = {**(before if phase == "phase2" else {}), f"{phase}_init_fingerprint": start}
    if phase == "phase1":
        tables = model.entropy.freeze()
    else:
        assert config.init_from is not None
        tables = load_networks(config.init_from)[1]
    provenance = {
        **provenance,
        f"{phase}_crops": progress.crops_seen,
        f"{phase}_shards": config.shards,
        **({f"{phase}_mlflow_run": mlflow_run} if mlflow_run else {}),
    }
    return save_codec(model, tables, out, provenance, compact)
