"""Commands as a person types them, and what they need: short trainings, and the whole road."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from pipelines.cli import main
from pipelines.files import storage


def train_args(shards: str, storage: str, **options: object) -> list[str]:
    """Give the options of a short training."""
    defaults = {"crops_total": 48, "batch": 8, "crop": 64, "checkpoint_every": 24, "name": "run"}
    merged = {**defaults, **options}
    flags = [part for k, v in merged.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    return ["--shards", shards, "--storage", storage, *flags]


def train_apart(shards: str, root: Path, **options: object) -> str:
    """Train phase 1 under a directory of its own, for tests to compare with; returns its MLflow store."""
    tracking = f"sqlite:///{root}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        assert main(["train", "phase1", *train_args(shards, str(root), **options)]) == 0
    return tracking


class Road(NamedTuple):
    """Where everything of one road lies."""

    root: str
    mlflow: str

    @property
    def phase1(self) -> str:
        return f"{self.root}/runs/run/phase1/codec"

    @property
    def phase2(self) -> str:
        return f"{self.root}/runs/run/phase2/codec"


def road_commands(root: str) -> dict[str, list[str]]:
    """Give the whole road, by the commands that a person types."""
    cut = ["--crop", "64", "--pictures-per-shard", "3", "--val-fraction", "0.3"]
    options = train_args(f"{root}/shards", f"{root}/runs", workers=2, zero_stage=2)
    flags = ["--codec", f"{root}/runs/run/phase2/codec", "--unit", "3", "--steps", "2", "--quality", "5"]
    return {
        "shard": ["shard", f"{root}/photographs", f"{root}/shards", *cut],
        "train": ["train", "all", *options, "--phase2-crops-total", "24"],
        "compress": ["compress", f"{root}/photographs", f"{root}/compressed", *flags],
    }


def upload(photographs: Path, root: str) -> None:
    """Put six good pictures and two broken ones where the road starts."""
    for i in range(6):
        storage.write_bytes(f"{root}/photographs/sub/picture_{i}.png", (photographs / f"picture_{i}.png").read_bytes())
    storage.write_bytes(f"{root}/photographs/broken.jpg", b"\xff\xd8\xff\xe0 this is no picture")
    storage.write_bytes(f"{root}/photographs/truncated.png", (photographs / "picture_0.png").read_bytes()[:2000])
