"""Real Ray Train, killed at random and started again on other numbers of workers: each epoch's crops are exactly the
manifest's. What a model would do with them is left out, so that many schedules fit."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from pipelines.shards.format import Manifest, read_manifest
from pipelines.train import epoch_order, ingest
from pipelines.train.crops import Crops
from pipelines.train.epoch_order import Cursor

BATCH, EPOCHS = 6, 3
SCHEDULES = 5


def consume(loop: dict[str, Any]) -> None:
    """A worker: write down the keys of each step, and now and then a checkpoint; die where the schedule says."""
    root = Path(loop["root"])
    state = json.loads((root / "state.json").read_text())
    context = ray.train.get_context()
    rank = context.get_world_rank()
    reader = ray.train.get_dataset_shard(ingest.DATASET)
    assert isinstance(reader, ingest.CropReader)
    start = state["done"]
    batches = reader.batches(Cursor(*state["cursor"]), loop["steps"] - start)
    for step, batch in enumerate(batches, start=start):
        if step == loop["dies_at"] and rank == loop["dies"] % context.get_world_size():
            os._exit(1)
        name = f"{loop['attempt']}-{step}-{rank}"
        (root / "keys" / name).write_text(json.dumps([batch.epoch, [key for key in batch.keys if key]]))
        if (step + 1) % loop["checkpoint_every"] == 0 or step + 1 == loop["steps"]:
            dist.barrier()
            if rank == 0:
                stretch = [loop["attempt"], state["done"], step + 1]
                state = {"done": step + 1, "cursor": batch.next, "kept": [*state["kept"], stretch]}
                (root / "new.json").write_text(json.dumps(state))
                (root / "new.json").rename(root / "state.json")
            dist.barrier()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_each_epoch_is_exactly_the_manifest_whatever_happens(seed: int, shards: str, tmp_path: Path) -> None:
    chance = random.Random(seed)
    manifest = read_manifest(shards)
    steps = EPOCHS * epoch_order.steps_per_epoch(manifest, BATCH)
    (tmp_path / "keys").mkdir()
    (tmp_path / "state.json").write_text(json.dumps({"done": 0, "cursor": [0, 0], "kept": []}))
    attempts: list[int] = []
    while (done := json.loads((tmp_path / "state.json").read_text())["done"]) < steps:
        workers = chance.choice([1, 2, 3])
        last = len(attempts) >= 3
        loop = {
            "root": str(tmp_path), "attempt": len(attempts), "steps": steps, "dies": chance.randrange(3),
            "dies_at": -1 if last else chance.randrange(done, steps), "checkpoint_every": chance.randint(2, 5),
        }  # fmt: skip
        attempts.append(workers)
        trainer = TorchTrainer(
            consume,
            train_loop_config=loop,
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5}),
            datasets={ingest.DATASET: list},
            dataset_config=ingest.PlannedData(Crops(shards, manifest), seed, BATCH),
            run_config=RunConfig(
                name=f"schedule-{seed}-{len(attempts)}", storage_path=str(tmp_path / "ray"),
                failure_config=FailureConfig(max_failures=0),
            ),
        )  # fmt: skip
        try:
            trainer.fit()
        except TrainingFailedError:
            assert not last
    assert len(attempts) >= 2  # something was killed
    assert kept_keys(tmp_path) == {epoch: every_key(manifest) for epoch in range(EPOCHS)}


def kept_keys(root: Path) -> dict[int, Counter[str]]:
    """Keys by epoch of the steps that ended up in a checkpoint."""
    found: dict[int, Counter[str]] = {}
    for attempt, first, last in json.loads((root / "state.json").read_text())["kept"]:
        for step in range(first, last):
            for file in (root / "keys").glob(f"{attempt}-{step}-*"):
                epoch, keys = json.loads(file.read_text())
                found.setdefault(epoch, Counter()).update(keys)
    return found


def every_key(manifest: Manifest) -> Counter[str]:
    return Counter(shard.key(i) for shard in manifest.shards for i in range(shard.count))
