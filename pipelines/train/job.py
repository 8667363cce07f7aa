"""The one training loop: Ray Train starts the workers, DeepSpeed steps, Ray Data feeds. Blind to what a phase trains.

RUN/PHASE/run.json        what this run is; another run of the same name is refused
RUN/PHASE/checkpoints/    see checkpoints.py
RUN/PHASE/init-codec/     phase 2: the frozen networks
RUN/PHASE/codec/          the export, when the phase has ended
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import threading
import time
from typing import Any

import torch
import torch.distributed as dist

from corrdiff import perceptual
from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import CONFIG_FILE, load_networks, read_config, save_codec
from corrdiff.errors import JobError, UsageError
from pipelines.display.progress import console
from pipelines.files import storage
from pipelines.files.records import differences
from pipelines.options import identity
from pipelines.runtime.ray_private import is_leaving
from pipelines.runtime.resources import cluster_cpus, cluster_gpus, may_grow
from pipelines.shards.format import Manifest, read_manifest
from pipelines.tracking.tracker import tracking_uri
from pipelines.train import checkpoints, ingest, validation
from pipelines.train.board import Board, watch
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.costs import Costs, Meter
from pipelines.train.epoch_order import Cursor
from pipelines.train.observer import Observer
from pipelines.train.trainer import Trainer, steps_left
from pipelines.train.validation import HeldOut


def train(config: TrainConfig, phase: PhaseName) -> str:
    """Run or resume one phase to its end on Ray and export its codec; returns the codec's URI.

    Raises:
        UsageError: the shards, the start codec or the run's name do not fit.
        JobError: training failed; the message says where.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    config = dataclasses.replace(
        config, shards=storage.absolute(config.shards), storage=storage.absolute(config.storage),
        init_from=storage.absolute(config.init_from) if config.init_from else None,
    )  # fmt: skip
    tracking = tracking_uri()
    manifest = read_manifest(config.shards)
    if manifest.crop < config.crop:
        raise UsageError(f"--crop {config.crop} is larger than the shards' crops of {manifest.crop} pixels")
    if config.lpips_weight and perceptual.lpips_weights(config.lpips_weights) is None:
        raise UsageError(f"--lpips-weight needs LPIPS: {perceptual.missing_lpips_sentence()}")
    run = storage.join(config.storage, config.name, phase)
    config = _claim(run, phase, config, manifest)
    codec_uri = storage.join(run, "codec")
    if storage.exists(storage.join(codec_uri, CONFIG_FILE)):
        console.print(f"{phase} of run '{config.name}' is finished: {codec_uri}")
        return codec_uri

    gpus = cluster_gpus()
    if config.device == "cuda" and gpus < config.min_workers:
        raise UsageError(f"--device cuda with --workers {config.workers}, but the cluster has {gpus} GPUs")
    use_gpu = config.device != "cpu" and gpus > 0
    elastic = (config.min_workers, config.max_workers) if config.min_workers < config.max_workers else None
    # Where no other machine can come, workers share the processors that are there.
    alone = elastic is None and not may_grow()
    cpus = min(1.0, max(0.1, cluster_cpus() / config.max_workers)) if alone else 1.0
    # On the driver's own machine: it must not go away with one that comes and goes.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote(phase, config.name)
    # Not in the loop's configuration, which Ray shows: it may hold a password.
    ray.get(board.write.remote(tracking=tracking))
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": dataclasses.asdict(config), "phase": phase, "run": run, "board": board,
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.max_workers if elastic is None else elastic, use_gpu=use_gpu,
            resources_per_worker={"GPU": 1, "CPU": 0} if use_gpu else {"CPU": cpus},
            elastic_resize_monitor_interval_s=config.resize_every,
        ),
        # The plan needs no dataset of Ray's: each worker's reader makes its own, a segment at a time.
        datasets={ingest.DATASET: list},
        dataset_config=ingest.PlannedData(config.shards, manifest, config.seed, config.batch),
        run_config=RunConfig(
            # Ray Train keeps only its own state here, under a name that is never used twice: checkpoints are ours.
            name=f"{config.name}-{phase}-{time.time_ns()}",
            storage_path=os.path.join(tempfile.gettempdir(), "corrdiff-ray-train"),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )  # fmt: skip
    watching = threading.Event()
    watcher = threading.Thread(target=watch, args=(board, phase, config.crops_total, watching), daemon=True)
    watcher.start()
    failure: Exception | None = None
    try:
        trainer.fit()
    except TrainingFailedError as error:
        failure = error
    finally:
        watching.set()
        watcher.join(5.0)
    state: dict[str, Any] = ray.get(board.read.remote())
    if state["failed"]:
        raise JobError(state["failed"])
    if failure is not None:
        raise JobError(f"{phase} failed after {state['crops']:,} crops: {_reason(failure)}") from failure
    console.print(_spent(phase, state))
    console.print(f"{phase}: codec {codec_uri}")
    return codec_uri


def _spent(phase: str, state: dict[str, Any]) -> str:
    """The summary at the end."""
    costs: Costs | None = state.get("costs")
    if costs is None:
        return f"{phase}: nothing was left to train"
    m = costs.metrics()
    use = f", MFU {m['mfu']:.1%}" if "mfu" in m else ""
    return (
        f"{phase}: {costs.crops:,} crops in {costs.seconds:.0f} s: {m['crops_per_s']:.1f} crops/s, "
        f"{m['crops_per_s_per_worker']:.1f} a worker; {m['waiting_share']:.1%} of the time waiting for data; "
        f"{costs.read_bytes / 1e6:,.1f} MB read; {m['tflops_per_s']:.3f} TFLOP/s{use}; "
        f"peak memory {m['peak_memory_gib']:.2f} GiB a worker"
    )


def _reason(error: Exception) -> str:
    """The worker's own words, without the frames around them."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    first = next(iter(failures.values()))
    cause = getattr(first, "cause", None) or first
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[-1] if str(cause).strip() else 'no message'}"


def _claim(run: str, phase: PhaseName, config: TrainConfig, manifest: Manifest) -> TrainConfig:
    """Make sure that RUN/PHASE is this run's, or nobody's; copy phase 2's start into it."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(manifest), sort_keys=True).encode()).hexdigest()
    start = read_config(config.init_from)[1] if config.init_from else None
    mine = {**identity(config), "shards": digest, "init_from": start}
    uri = storage.join(run, "run.json")
    if storage.exists(uri):
        found = storage.read_json(uri)["identity"]
        if found != mine:
            said = differences(found, mine)
            raise UsageError(f"{run} holds a different run ({said}); choose another --name or remove it")
    else:
        storage.write_json(uri, {"identity": mine, "config": dataclasses.asdict(config), "phase": phase})
    if phase == "phase2" and config.init_from:
        kept = storage.join(run, "init-codec")
        if not storage.exists(storage.join(kept, CONFIG_FILE)):
            model, tables, _ = load_networks(config.init_from)
            save_codec(model, tables, kept, read_config(config.init_from)[2])
        config = dataclasses.replace(config, init_from=kept)
    return config


def _worker(loop: dict[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray
    import ray.train

    state = ray.get(loop["board"].read.remote())
    if state["failed"]:
        return
    config, phase, run = TrainConfig(**loop["config"]), loop["phase"], loop["run"]
    context = ray.train.get_context()
    if torch.cuda.is_available() and ray.get_gpu_ids():
        device = ray.train.torch.get_device()
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
        device = torch.device("cpu")
    observer = Observer(loop["board"], state["tracking"], config, phase, run) if context.get_world_rank() == 0 else None
    try:
        _train_loop(config, phase, run, device, observer)
    except (JobError, UsageError) as error:
        # Raising ends the other workers too, which may be waiting in a collective. The restart that Ray Train then
        # makes finds this on the board and ends: trying again would come to the same.
        ray.get(loop["board"].write.remote(failed=str(error)))
        if observer:
            observer.close("FAILED")
        raise
    except BaseException:
        if observer:
            observer.close("FAILED")
        raise


def _train_loop(
    config: TrainConfig, phase: PhaseName, run: str, device: torch.device, observer: Observer | None
) -> None:
    import ray.train

    manifest = read_manifest(config.shards)
    directory = storage.join(run, "checkpoints")
    restored, problems = checkpoints.load_newest(directory)
    trainer = Trainer(config, phase, device, restored)
    _check_agreement(trainer)
    if observer:
        for problem in problems:
            observer.say(f"{problem}; going on from the one before")
        if restored:
            observer.say(f"{phase} goes on from {trainer.progress.crops_seen:,} crops")
    del restored
    steps = steps_left(config, manifest, trainer.progress)
    reader = ray.train.get_dataset_shard(ingest.DATASET)
    assert isinstance(reader, ingest.CropReader)
    held_out = validation.read_held_out(config.shards)
    meter = Meter(device, trainer.flops_per_crop)
    epoch_rows, epoch_from = 0, trainer.progress.cursor
    saved_for_leaving = False
    waited_from = time.monotonic()
    for i, batch in enumerate(reader.batches(trainer.progress.cursor, steps)):
        meter.add(batch.real_rows, time.monotonic() - waited_from, batch.read_bytes)
        before = trainer.progress.crops_seen
        result = trainer.step(batch, is_leaving())
        seen = trainer.progress.crops_seen
        last = i == steps - 1
        epoch_rows += int(batch.weight_B.sum())
        if trainer.progress.cursor.epoch > batch.epoch:
            _check_epoch(manifest, config.batch, epoch_from, epoch_rows, device)
            epoch_rows, epoch_from = 0, trainer.progress.cursor
        if observer:
            observer.after_step(trainer, result, batch.real_rows)
        if trainer.progress.optimizer_steps % config.log_every == 0 or last:
            costs = meter.collect()
            if observer:
                observer.after_window(trainer, costs)
        if _crossed(before, seen, config.checkpoint_every) or last or (result.leaving and not saved_for_leaving):
            saved_for_leaving = result.leaving
            checkpoints.save(directory, trainer.engine, trainer.ema, trainer.progress, config.keep_checkpoints)
            ray.train.report({"crops_seen": seen, "loss": result.terms[0]})
            if result.leaving and observer:
                observer.say(f"{phase}: a machine is about to go away; checkpoint at {seen:,} crops")
        if _crossed(before, seen, config.validate_every) or last:
            _validate(trainer, held_out, observer)
        waited_from = time.monotonic()
    if observer:
        observer.export(trainer)
        observer.close("FINISHED")


def _check_agreement(trainer: Trainer) -> None:
    """All workers must have restored the same checkpoint."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, trainer.progress)
    if any(progress != trainer.progress for progress in every):
        raise JobError(f"the workers restored different checkpoints: {sorted({p.crops_seen for p in every})} crops")


def _check_epoch(manifest: Manifest, batch: int, start: Cursor, rows: int, device: torch.device) -> None:
    """Compare what all workers consumed of an epoch with the manifest; collective."""
    consumed = torch.tensor(rows, dtype=torch.int64, device=device)
    dist.all_reduce(consumed)
    expected = manifest.count - start.step * batch
    if int(consumed) != expected:
        raise JobError(f"epoch {start.epoch} had {int(consumed):,} crops from step {start.step} on, not {expected:,}")


def _validate(trainer: Trainer, held_out: HeldOut, observer: Observer | None) -> None:
    """Real encodes and decodes by the averaged weights; collective."""
    config = trainer.config
    model = trainer.averaged_model()
    tables = model.entropy.freeze() if trainer.phase == "phase1" else load_networks(str(config.init_from))[1]
    codec = CorrDiffCodec(model, tables, bytes(8), trainer.device)
    path = perceptual.lpips_weights(config.lpips_weights)
    lpips = perceptual.load_lpips(path) if path is not None else None
    values, rows = validation.measure(codec, held_out, lpips)
    if observer:
        observer.validated(trainer, values, rows)


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every
