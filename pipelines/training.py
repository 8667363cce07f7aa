"""The one training loop: Ray Train starts the workers, DeepSpeed steps, Ray Data feeds. Blind to what a phase trains.

RUN/PHASE/run.json        what this run is; another run of the same name is refused
RUN/PHASE/checkpoints/    see train_state.py
RUN/PHASE/init-codec/     phase 2: the frozen networks
RUN/PHASE/codec/          the export, when the phase has ended
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
import threading
import time
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from corrdiff import metrics
from corrdiff.checkpoint import CONFIG_FILE, load_codec, load_networks, read_config, save_codec
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.config import preset
from corrdiff.ema import Ema
from corrdiff.errors import JobError, UsageError
from corrdiff.losses import Perceptual
from corrdiff.model import CorrDiffModel
from pipelines import augment, ingest, phase1, phase2, storage, train_state
from pipelines.config import PhaseName, TrainConfig
from pipelines.export import codec_config, export_model, model_with
from pipelines.ingest import Batch, Cursor
from pipelines.progress import console, display
from pipelines.report import Panel, side_by_side
from pipelines.shards import Manifest, read_manifest
from pipelines.tracking import RunSpec, Tracker, tracking_uri
from pipelines.train_state import Progress, Restored
from pipelines.zero_config import deepspeed_config

WARMUP_LR_SHARE = 0.1
DECAY_FROM_SHARE = 0.4
FINAL_LR_SHARE = 0.03
EMA_HALFLIFE_SHARE = 0.03
"""Half-life of the weight average, as a share of the run."""
PREVIEW_PICTURES = 3
PREVIEW_QUALITIES = (1, 4, 7)


class StepResult(NamedTuple):
    """One optimizer step, over all workers."""

    terms: list[float]
    """Means over the real crops of the batch, in the phase's order of terms."""
    grad_norm: float
    lr: float


def lr_at(config: TrainConfig, images_seen: int) -> float:
    """Linear warm-up, plateau, cosine decay; all in crops."""
    share = images_seen / config.images_total
    if share < WARMUP_LR_SHARE:
        return config.lr * share / WARMUP_LR_SHARE
    decay = max(0.0, (share - DECAY_FROM_SHARE) / (1 - DECAY_FROM_SHARE))
    return config.lr * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * min(decay, 1.0))))


def warmup_at(config: TrainConfig, images_seen: int) -> float:
    """Share of phase 1's warm-up that is done, at most 1."""
    length = config.warmup_share * config.images_total
    return min(1.0, images_seen / length) if length > 0 else 1.0


def build_model(config: TrainConfig) -> CorrDiffModel:
    """Phase 1's networks at their start: from a codec, or drawn from the seed."""
    if config.init_from is not None:
        return load_networks(config.init_from)[0]
    torch.manual_seed(config.seed)
    return CorrDiffModel(preset(config.preset))


def build_phase(
    config: TrainConfig, phase: PhaseName, device: torch.device, perceptual: Perceptual | None
) -> phase1.Phase1 | phase2.Phase2:
    """The module that DeepSpeed is to wrap."""
    if phase == "phase1":
        return phase1.Phase1(build_model(config), config.beta, config.lpips_weight, perceptual)
    if config.init_from is None:
        raise UsageError("phase 2 needs the codec of a finished phase 1: give --init-from CODEC")
    codec = load_codec(config.init_from, device, config.precision)
    decoder = load_networks(config.init_from)[0].decoder
    return phase2.Phase2(codec, decoder, config.lpips_weight, perceptual)


class Trainer:
    """A phase on one worker of an initialised process group."""

    def __init__(self, config: TrainConfig, phase: PhaseName, device: torch.device, restored: Restored | None) -> None:
        import deepspeed

        self.config, self.phase, self.device = config, phase, device
        self.term_names = phase1.TERMS if phase == "phase1" else phase2.TERMS
        self.progress = restored.progress if restored else Progress(0, 0, Cursor(0, 0))
        module = build_phase(config, phase, device, _perceptual(config, device))
        module.to(device)  # pictures are channels_last; DeepSpeed wants the weights themselves contiguous
        self.transform = (module.model if isinstance(module, phase1.Phase1) else module._frozen[0]).config.transform
        trained = train_state.trained_parameters(module)
        if restored:
            with torch.no_grad():
                for name, p in trained:
                    p.copy_(restored.tensors["weight"][name])
        self.ema = Ema(trained, EMA_HALFLIFE_SHARE * config.images_total)
        if restored:
            self.ema.average = {name: restored.tensors["ema"][name].to(device) for name, _ in trained}
        if device.type == "cpu":
            # Its shared-memory all-reduce would be compiled at every first start; gloo needs no compiler.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.engine, *_ = deepspeed.initialize(
            model=module, model_parameters=[p for _, p in trained], config=deepspeed_config(config)
        )
        if restored:
            train_state.restore_moments(self.engine, restored)

    def step(self, batch: Batch) -> StepResult:
        """Forward, backward and update on this worker's part of a batch.

        Raises `JobError` on every worker, before the update, where a loss term is not finite.
        """
        config, world_size = self.config, dist.get_world_size()
        lr = lr_at(config, self.progress.images_seen + batch.real_rows)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        warmup = warmup_at(config, self.progress.images_seen)
        sample = augment.draw(batch, config.seed, config.crop, self.transform, self.device)
        totals = torch.zeros(len(self.term_names), device=self.device)
        parts = augment.micro_batches(sample, config.micro_batch_size)
        for i, part in enumerate(parts):
            terms_BT = self.engine(part, warmup)
            # DeepSpeed divides by the accumulation steps and averages over workers; padding has no weight.
            loss = (terms_BT[:, 0] * part.w_B).sum() / batch.real_rows * world_size * config.accumulation
            totals += (terms_BT.detach() * part.w_B[:, None]).sum(0)
            self.engine.backward(loss)
            if i == len(parts) - 1:
                dist.all_reduce(totals)
                self._check_finite(totals / batch.real_rows, batch)
            self.engine.step()
        grad_norm = float(self.engine.get_global_grad_norm() or 0.0)
        if not math.isfinite(grad_norm):
            raise JobError(f"{self.phase}: the gradient is not finite after {self.progress.images_seen:,} crops")
        seen = self.progress.images_seen + batch.real_rows
        self.ema.update(train_state.full_weights(self.engine), batch.real_rows, seen)
        self.progress = Progress(seen, self.progress.optimizer_steps + 1, batch.next)
        return StepResult((totals / batch.real_rows).tolist(), grad_norm, lr)

    def _check_finite(self, terms: Tensor, batch: Batch) -> None:
        if not bool(torch.isfinite(terms).all()):
            named = ", ".join(f"{n} {v:.4g}" for n, v in zip(self.term_names, terms.tolist(), strict=True))
            raise JobError(
                f"{self.phase}: the loss is not finite at step {self.progress.optimizer_steps + 1} "
                f"({self.progress.images_seen:,} crops, epoch {batch.epoch}): {named}; no update was made. "
                "A lower --lr, or fp32, usually helps"
            )

    def averaged_model(self) -> CorrDiffModel:
        """A copy of all networks with the averaged weights, on the CPU."""
        return model_with(self.config, self.phase, {k: v.cpu() for k, v in self.ema.average.items()})


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

    from pipelines.ray_session import cluster_cpus, cluster_gpus

    config = dataclasses.replace(
        config, shards=storage.absolute(config.shards), storage=storage.absolute(config.storage),
        init_from=storage.absolute(config.init_from) if config.init_from else None,
    )  # fmt: skip
    manifest = read_manifest(config.shards)
    if manifest.crop < config.crop:
        raise UsageError(f"--crop {config.crop} is larger than the shards' crops of {manifest.crop} pixels")
    if config.lpips_weight and metrics.lpips_weights(config.lpips_weights) is None:
        raise UsageError(f"--lpips-weight needs LPIPS: {metrics.missing_lpips_sentence()}")
    run = storage.join(config.storage, config.name, phase)
    config = _claim(run, phase, config, manifest)
    codec_uri = storage.join(run, "codec")
    if storage.exists(storage.join(codec_uri, CONFIG_FILE)):
        console.print(f"{phase} of run '{config.name}' is finished: {codec_uri}")
        return codec_uri

    gpus = cluster_gpus()
    if config.device == "cuda" and gpus < config.workers:
        raise UsageError(f"--device cuda with --workers {config.workers}, but the cluster has {gpus} GPUs")
    use_gpu = config.device != "cpu" and gpus > 0
    spare = cluster_cpus() - 0.5  # reading needs a share of the machine too
    cpus = 1.0 if use_gpu else min(1.0, max(0.1, spare / config.workers))
    board = ray.remote(Board).options(num_cpus=0).remote()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": dataclasses.asdict(config), "phase": phase, "run": run, "board": board,
            "tracking": tracking_uri(),
        },
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            # Ray Train keeps only its own state here, under a name that is never used twice: checkpoints are ours.
            name=f"{config.name}-{phase}-{time.time_ns()}",
            storage_path=os.path.join(tempfile.gettempdir(), "corrdiff-ray-train"),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
    )  # fmt: skip
    watching = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, phase, config.images_total, watching), daemon=True)
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
        raise JobError(f"{phase} failed after {state['images']:,} crops: {_reason(failure)}") from failure
    console.print(f"{phase}: {state['images']:,} crops in {state['seconds']:.0f} s, codec {codec_uri}")
    return codec_uri


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


def _watch(board: Any, title: str, total: int, stop: threading.Event) -> None:
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
    identity = {**config.identity(), "shards": digest, "init_from": start}
    uri = storage.join(run, "run.json")
    if storage.exists(uri):
        found = storage.read_json(uri)["identity"]
        if found != identity:
            differing = sorted(k for k in {*found, *identity} if found.get(k) != identity.get(k))
            said = "; ".join(f"{k}: {found.get(k)!r} there, {identity.get(k)!r} now" for k in differing)
            raise UsageError(f"{run} holds a different run ({said}); choose another --name or remove it")
    else:
        storage.write_json(uri, {"identity": identity, "config": dataclasses.asdict(config), "phase": phase})
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

    if ray.get(loop["board"].read.remote())["failed"]:
        return
    config, phase, run = TrainConfig(**loop["config"]), loop["phase"], loop["run"]
    context = ray.train.get_context()
    if torch.cuda.is_available() and ray.get_gpu_ids():
        device = ray.train.torch.get_device()
    else:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // context.get_local_world_size()))
        device = torch.device("cpu")
    rank0 = _Rank0(loop, config, phase, run) if context.get_world_rank() == 0 else None
    try:
        _train_loop(config, phase, run, device, rank0)
    except (JobError, UsageError) as error:
        # Raising ends the other workers too, which may be waiting in a collective. The restart that Ray Train then
        # makes finds this on the board and ends: trying again would come to the same.
        ray.get(loop["board"].write.remote(failed=str(error)))
        if rank0:
            rank0.close("FAILED")
        raise
    except BaseException:
        if rank0:
            rank0.close("FAILED")
        raise


def _train_loop(config: TrainConfig, phase: PhaseName, run: str, device: torch.device, rank0: _Rank0 | None) -> None:
    import ray.train

    manifest = read_manifest(config.shards)
    checkpoints = storage.join(run, "checkpoints")
    found = train_state.latest(checkpoints)
    restored = train_state.load(found) if found else None
    trainer = Trainer(config, phase, device, restored)
    del restored
    if rank0 and found:
        rank0.say(f"{phase} goes on from {trainer.progress.images_seen:,} crops ({found})")
    steps = steps_left(config, manifest, trainer.progress)
    batches = ingest.stream(
        config.shards, manifest, config.seed, trainer.progress.cursor, steps, config.batch,
        dist.get_rank(), dist.get_world_size(),
    )  # fmt: skip
    waited_from = time.monotonic()
    for i, batch in enumerate(batches):
        waited = time.monotonic() - waited_from
        before = trainer.progress.images_seen
        result = trainer.step(batch)
        seen = trainer.progress.images_seen
        last = i == steps - 1
        if rank0:
            rank0.after_step(trainer, result, batch.real_rows, waited, last)
        if _crossed(before, seen, config.checkpoint_every) or last:
            train_state.save(checkpoints, trainer.engine, trainer.ema, trainer.progress)
            ray.train.report({"images_seen": seen, "loss": result.terms[0]})
        if rank0 and (_crossed(before, seen, config.preview_every) or last):
            rank0.preview(trainer, manifest)
        waited_from = time.monotonic()
    if rank0:
        rank0.export(trainer, manifest)
        rank0.close("FINISHED")


def steps_left(config: TrainConfig, manifest: Manifest, progress: Progress) -> int:
    """Steps until `images_total` crops are seen; the last step of an epoch has fewer crops than the others."""
    epoch_steps = ingest.steps_per_epoch(manifest, config.batch)
    left = config.images_total - progress.images_seen
    rest_of_epoch = manifest.count - min(manifest.count, progress.cursor.step * config.batch)
    if left <= rest_of_epoch:
        return max(0, -(-left // config.batch))
    left -= rest_of_epoch
    steps = epoch_steps - progress.cursor.step
    return steps + left // manifest.count * epoch_steps + -(-(left % manifest.count) // config.batch)


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


class _Rank0:
    """What only the first worker does: progress, MLflow, pictures, the export."""

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
            tags |= {f"corrdiff.{k}": str(v) for k, v in provenance.items() if k.endswith("mlflow_run")}
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
            psnr_d = [metrics.psnr(o, e.privileged) for o, e in zip(originals, encoded, strict=True)]
            psnr_c = [metrics.psnr(o, e.reconstruction) for o, e in zip(originals, encoded, strict=True)]
            values[f"preview/q{q}/bpp"] = float(np.mean([e.bpp for e in encoded]))
            values[f"preview/q{q}/psnr_decoder_db"] = float(np.mean(psnr_d))
            values[f"preview/q{q}/psnr_corrected_db"] = float(np.mean(psnr_c))
            for o, e in zip(originals, encoded, strict=True):
                uncorrected = codec.decompress(e.data, "uncorrected")
                row += [
                    Panel(f"original, q{q}", o), Panel("D", e.privileged), Panel("uncorrected", uncorrected),
                    Panel(f"{e.bpp:.2f} bpp", e.reconstruction),
                ]  # fmt: skip
            rows.append(row)
        seen = trainer.progress.images_seen
        self.tracker.metrics(values, step=seen)
        self.tracker.artifact(f"previews/images-{seen:012d}.png", side_by_side(rows))

    def export(self, trainer: Trainer, manifest: Manifest) -> None:
        self.remember_mlflow_run(timeout_s=60.0)
        digest = export_model(
            trainer.averaged_model(), self.config, self.phase, trainer.progress, self.mlflow_run,
            storage.join(self.run, "codec"),
        )  # fmt: skip
        self.tracker.tags({"corrdiff.fingerprint": digest, "corrdiff.codec": storage.join(self.run, "codec")})

    def close(self, status: str) -> None:
        self.tracker.close(status)


def preview_crops(config: TrainConfig, manifest: Manifest) -> list[np.ndarray[Any, np.dtype[np.uint8]]]:
    """The first crops of the first shard, the same at every preview."""
    from corrdiff.images import open_image

    members = ingest.shard_members(config.shards, manifest.shards[0])[:PREVIEW_PICTURES]
    return [open_image(data).pixels for _, data in members]


def _perceptual(config: TrainConfig, device: torch.device) -> Perceptual | None:
    if config.lpips_weight == 0:
        return None
    path = metrics.lpips_weights(config.lpips_weights)
    if path is None:
        raise UsageError(metrics.missing_lpips_sentence())
    network = metrics.load_lpips(path).to(device)

    def distance(x_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        out: Tensor = network(x_BCHW.float(), target_BCHW).flatten()
        return out

    return distance


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}.{key}")
        else:
            flat[f"{prefix}.{key}"] = value
    return flat
