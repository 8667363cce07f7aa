"""A phase of training as a job on Ray, seen from the driver: what is refused, what is reserved, what came of it."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import threading
import time
from typing import Any, NamedTuple

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from corrdiff import perceptual
from corrdiff.errors import JobError, UsageError
from pipelines.files import storage
from pipelines.runtime.resources import cluster_cpus, cluster_gpus, may_grow
from pipelines.tracking.tracker import tracking_uri
from pipelines.train import ingest
from pipelines.train.board import Board, BoardState, watch
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.costs import Costs
from pipelines.train.crops import Crops, open_crops
from pipelines.train.phases.table import PHASES
from pipelines.train.run_directory import EXPORTED_CODEC, claim_run, has_codec
from pipelines.train.worker import work

HANGING_S = 600
"""A worker that the others have waited for so long in one step hangs. The longest waits that are none are for a
checkpoint on its way to storage and for a validation."""
DETECTOR = {
    "RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR": "1", "RAY_TRAIN_NCCL_RAS_ACTION": "fail",
    "RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S": str(HANGING_S * 4 // 5),
}  # fmt: skip
"""Ray Train asks NCCL who waits for whom. It is told to act before everyone's time is up, for it names the workers."""


class Trained(NamedTuple):
    """What came of a phase."""

    codec: str
    """URI of the exported codec."""
    was_finished: bool
    """Whether it was there already."""
    costs: Costs | None
    """What this job's steps cost; None where there were none."""


def train(config: TrainConfig, name: PhaseName) -> Trained:
    """Run or resume one phase to its end on Ray, with a progress display, and export its codec.

    Raises:
        UsageError: the shards, the start codec or the run's name do not fit.
        JobError: training failed; the message says where.
    """
    tracking = tracking_uri()
    config = _with_absolute_paths(config)
    crops = _check(config)
    run = storage.join(config.storage, config.name, name)
    config = claim_run(run, PHASES[name], config, crops.manifest)
    codec = storage.join(run, EXPORTED_CODEC)
    if has_codec(codec):
        return Trained(codec, True, None)
    scaling = _scaling(config)
    # On the driver's own machine: it must not go away with one that comes and goes.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote(name, config.name)
    ray.get(board.track.remote(tracking))
    loop = {"config": dataclasses.asdict(config), "phase": name, "run": run, "board": board}
    state = _fit(_trainer(config, crops, scaling, loop), board, name, config.crops_total)
    return Trained(codec, False, state.costs)


def _with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Name places so that workers elsewhere understand them."""
    return dataclasses.replace(
        config, shards=storage.absolute(config.shards), storage=storage.absolute(config.storage),
        init_from=storage.absolute(config.init_from) if config.init_from else None,
        shards_codec=storage.absolute(config.shards_codec) if config.shards_codec else None,
    )  # fmt: skip


def _check(config: TrainConfig) -> Crops:
    """Refuse what could only fail later; returns what there is to train on."""
    crops = open_crops(config)
    if crops.manifest.crop < config.crop:
        raise UsageError(f"--crop {config.crop} is larger than the shards' crops of {crops.manifest.crop} pixels")
    if config.lpips_weight and perceptual.lpips_weights(config.lpips_weights) is None:
        raise UsageError(f"--lpips-weight needs LPIPS: {perceptual.missing_lpips_sentence()}")
    return crops


def _scaling(config: TrainConfig) -> ScalingConfig:
    """Say how many workers there are to be and what each reserves."""
    gpus = cluster_gpus()
    if config.device == "cuda" and gpus < config.min_workers:
        raise UsageError(f"--device cuda with --workers {config.workers}, but the cluster has {gpus} GPUs")
    use_gpu = config.device != "cpu" and gpus > 0
    elastic = config.min_workers < config.max_workers
    # Where no other machine can come, workers share the processors that are there.
    alone = not elastic and not may_grow()
    cpus = min(1.0, max(0.1, cluster_cpus() / config.max_workers)) if alone else 1.0
    return ScalingConfig(
        num_workers=(config.min_workers, config.max_workers) if elastic else config.max_workers, use_gpu=use_gpu,
        resources_per_worker={"GPU": 1, "CPU": 0} if use_gpu else {"CPU": cpus},
        elastic_resize_monitor_interval_s=config.resize_every,
    )  # fmt: skip


def _trainer(config: TrainConfig, crops: Crops, scaling: ScalingConfig, loop: dict[str, Any]) -> TorchTrainer:
    """Give each worker its loop and its reader of the shards."""
    return TorchTrainer(
        work,
        train_loop_config=loop,
        torch_config=_backend(bool(scaling.use_gpu)),
        scaling_config=scaling,
        # The plan needs no dataset of Ray's: each worker's reader makes its own, a segment at a time.
        datasets={ingest.DATASET: list},
        dataset_config=ingest.PlannedData(crops, config.seed, config.batch),
        run_config=RunConfig(
            # Ray Train keeps only its own state here, under a name that is never used twice: checkpoints are ours.
            name=f"{re.sub(r'[^A-Za-z0-9._-]+', '-', config.name)}-{loop['phase']}-{time.time_ns()}",
            storage_path=os.path.join(tempfile.gettempdir(), "corrdiff-ray-train"),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )


def _backend(use_gpu: bool) -> TorchConfig:
    """Say how workers talk, and how long they wait for one that does not."""
    if use_gpu:
        for name, value in DETECTOR.items():
            os.environ.setdefault(name, value)
    return TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=HANGING_S)


def _fit(trainer: TorchTrainer, board: Any, name: PhaseName, crops_total: int) -> BoardState:
    """Train, and show what is on the board meanwhile; returns what is on it at the end.

    Raises `JobError` where training failed.
    """
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(board, name, crops_total, ended), daemon=True)
    watcher.start()
    failure: TrainingFailedError | None = None
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failure = error
    finally:
        ended.set()
        watcher.join(5.0)
    state: BoardState = ray.get(board.read.remote())
    if state.failed:
        raise JobError(state.failed)
    if failure is not None:
        raise JobError(f"{name} failed after {state.crops:,} crops: {_reason(failure)}") from failure
    return state


def _reason(error: TrainingFailedError) -> str:
    """The worker's own words, without the frames around them."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    first = next(iter(failures.values()))
    cause = getattr(first, "cause", None) or first
    said = str(cause).strip()
    reason = f"{type(cause).__name__}: {said.splitlines()[-1] if said else 'no message'}"
    if re.search(r"timed out|timeout|\bh[au]ng", said, re.IGNORECASE):
        return f"a worker was waited for {HANGING_S // 60} minutes: it hangs, or its machine or network does ({reason})"
    return reason
