"""What a phase of a training run leaves in RUN/PHASE, where RUN is STORAGE/NAME, and whose that directory is.

RUN/PHASE/run.json           what this run is; another run of the same name is refused
RUN/PHASE/checkpoints/       see checkpoints.py
RUN/PHASE/init-codec/        of a phase that goes on from another's codec: that codec
RUN/PHASE/codec/             the export, when the phase has ended
RUN/PHASE/validation.json    what was measured on held-out crops, the first time first
RUN/PHASE/mlflow.json        which MLflow run it is, see tracking/tracker.py
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from corrdiff.codec_directory import CONFIG_FILE, load_networks, read_config, save_codec
from corrdiff.errors import UsageError
from pipelines.files import storage
from pipelines.files.records import claim, read_record
from pipelines.options import defaults, identity
from pipelines.shards.format import Manifest
from pipelines.train import checkpoints
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.phases.base import Phase

RUN_FILE, VALIDATION_FILE = "run.json", "validation.json"
CHECKPOINTS, START_CODEC, EXPORTED_CODEC = "checkpoints", "init-codec", "codec"


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What run.json says of a run."""

    identity: dict[str, Any]
    """What makes two runs the same: the options that may not change, the shards' content, the start's fingerprint."""
    config: TrainConfig
    """The options as they were given first."""
    phase: PhaseName


def claim_run(run: str, phase: Phase, config: TrainConfig, manifest: Manifest) -> TrainConfig:
    """Make RUN/PHASE this run's where it is nobody's, and keep in it a copy of the codec that the phase goes on from.

    Returns the configuration with that copy as its start. Raises `UsageError` where it is another run's.
    """
    crops = {name: value for name, value in dataclasses.asdict(manifest).items() if name != "left_out"}
    shards = hashlib.sha256(json.dumps(crops, sort_keys=True).encode()).hexdigest()
    start = read_config(config.init_from)[1] if config.init_from else None
    if not storage.exists(storage.join(run, RUN_FILE)):
        stray = checkpoints.begun(storage.join(run, CHECKPOINTS))
        if stray and not storage.exists(storage.join(run, RUN_FILE)):
            raise UsageError(f"{stray[0]} is of no run that is known; choose another --name or move it away")
    record = RunRecord({**identity(config), "shards": shards, "init_from": start}, config, phase.name)
    claim(
        storage.join(run, RUN_FILE), dataclasses.asdict(record), f"{run} holds a different run",
        instead="choose another --name or remove it", absent=defaults(TrainConfig),
    )  # fmt: skip
    if phase.follows is None or config.init_from is None:
        return config
    kept = storage.join(run, START_CODEC)
    if not has_codec(kept):
        model, tables, _ = load_networks(config.init_from)
        save_codec(model, tables, kept, read_config(config.init_from)[2])
    return dataclasses.replace(config, init_from=kept)


def read_run(run: str) -> RunRecord:
    """Read what RUN/PHASE says that it is. Raises `UsageError` where it says nothing, or nothing that is known."""
    uri = storage.join(run, RUN_FILE)
    try:
        return read_record(uri, RunRecord)
    except FileNotFoundError:
        raise UsageError(f"there is no {uri}, which says how to read the checkpoints beside it") from None


def has_codec(uri: str) -> bool:
    """Say whether a whole codec is in a directory: its configuration is written last."""
    return storage.exists(storage.join(uri, CONFIG_FILE))
