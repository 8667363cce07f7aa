"""What a resume needs, and how it is kept: checkpoints that any number of workers and any ZeRO stage can read.

    RUN/PHASE/checkpoints/crops-000000004096/
        part-0-of-2.safetensors   weight/NAME, ema/NAME, exp_avg/NAME, exp_avg_sq/NAME: whole fp32 tensors
        COMPLETE.json             written last: progress, and size and SHA-256 of each part

A directory without COMPLETE.json is not a checkpoint. A plain program reads the parts with safetensors alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from corrdiff.ema import Ema
from corrdiff.errors import JobError, UsageError
from pipelines.files import storage
from pipelines.train.epoch_order import Cursor

COMPLETE = "COMPLETE.json"

MOMENTS = ("exp_avg", "exp_avg_sq")


class Progress(NamedTuple):
    """How far a run is, beside its tensors."""

    crops_seen: int
    optimizer_steps: int
    cursor: Cursor


class Restored(NamedTuple):
    """A checkpoint in memory: whole tensors by kind and name."""

    progress: Progress
    tensors: dict[str, dict[str, Tensor]]
    """"weight", "ema", "exp_avg", "exp_avg_sq" -> name -> tensor."""


def finished(directory: str) -> list[str]:
    """URIs of the finished checkpoints under RUN/PHASE/checkpoints, the newest first."""
    names = [n for n in storage.list_names(directory) if storage.exists(storage.join(directory, n, COMPLETE))]
    return [storage.join(directory, name) for name in reversed(names)]


def latest(directory: str) -> str | None:
    """URI of the newest finished checkpoint."""
    return next(iter(finished(directory)), None)


def load_newest(directory: str) -> tuple[Restored | None, list[str]]:
    """The newest checkpoint that is what was written, and what is wrong with newer ones.

    Raises `JobError` where there are checkpoints and none can be read.
    """
    problems: list[str] = []
    for uri in finished(directory):
        try:
            return load(uri), problems
        except JobError as error:
            problems.append(str(error))
    if problems:
        raise JobError(f"no checkpoint can be read: {'; '.join(problems)}")
    return None, []


def load(uri: str) -> Restored:
    """Read and verify a checkpoint. Raises `JobError` where a part is missing or is not what was written."""
    try:
        marker = storage.read_json(storage.join(uri, COMPLETE))
        progress = Progress(
            int(marker["crops_seen"]), int(marker["optimizer_steps"]), Cursor(*(int(v) for v in marker["cursor"]))
        )
        parts: dict[str, dict[str, Any]] = marker["parts"]
    except (FileNotFoundError, UsageError, KeyError, TypeError, ValueError) as error:
        raise JobError(f"checkpoint {uri}: {COMPLETE} cannot be read ({error})") from None
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, expected in sorted(parts.items()):
        try:
            data = storage.read_bytes(storage.join(uri, name), storage.PATIENT_ATTEMPTS)
        except FileNotFoundError:
            raise JobError(f"checkpoint {uri}: {name} is missing") from None
        if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise JobError(f"checkpoint {uri}: {name} is damaged")
        for key, tensor in safetensors.torch.load(data).items():
            kind, _, parameter = key.partition("/")
            tensors.setdefault(kind, {})[parameter] = tensor
    return Restored(progress, tensors)


def save(directory: str, engine: Any, ema: Ema, progress: Progress, keep: int) -> str:
    """Write a checkpoint; every rank calls this. Parts first, the marker when all of them are there. The newest `keep`
    finished ones stay.

    Raises `JobError` on every rank where one of them could not write.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    uri = storage.join(directory, f"crops-{progress.crops_seen:012d}")
    mine: dict[str, Tensor] = {}
    for i, (name, state) in enumerate(_full_states(engine)):
        if i % world_size == rank:
            for kind, tensor in state.items():
                mine[f"{kind}/{name}"] = tensor.detach().float().cpu().clone()
            mine[f"ema/{name}"] = ema.average[name].cpu().clone()
    name = f"part-{rank}-of-{world_size}.safetensors"
    data = safetensors.torch.save(mine)
    info: dict[str, Any] = {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    try:
        storage.write_bytes(storage.join(uri, name), data, storage.PATIENT_ATTEMPTS)
    except (OSError, JobError) as error:
        info["error"] = str(error)
    infos = _gather(info)
    _raise_first(infos, uri)
    outcome: dict[str, Any] = {}
    if rank == 0:
        marker = {
            "crops_seen": progress.crops_seen,
            "optimizer_steps": progress.optimizer_steps,
            "cursor": list(progress.cursor),
            "parts": {i["name"]: {"bytes": i["bytes"], "sha256": i["sha256"]} for i in infos},
        }
        try:
            storage.write_json(storage.join(uri, COMPLETE), marker)
            _retire(directory, keep)
        except (OSError, JobError) as error:
            outcome["error"] = str(error)
    _raise_first(_gather(outcome), uri)
    return uri


def restore_moments(engine: Any, restored: Restored) -> None:
    """Put Adam's moments and step count into a fresh engine, whatever its ZeRO stage and number of workers.

    The weights must have been in the module before DeepSpeed wrapped it.
    """
    stage = engine.zero_optimization_stage()
    step = torch.tensor(float(restored.progress.optimizer_steps))
    names = {p: n for n, p in engine.module.named_parameters()}
    if stage == 0:
        optimizer = engine.optimizer
        for group in optimizer.param_groups:
            for p in group["params"]:
                moments = {k: restored.tensors[k][names[p]].to(p.device) for k in MOMENTS}
                optimizer.state[p] = {"step": step.clone(), **moments}
        return
    flat = (
        engine.optimizer.fp32_partitioned_groups_flat
        if stage == 3
        else engine.optimizer.single_partition_of_fp32_groups
    )
    for partition in flat:
        zeros = {k: torch.zeros_like(partition) for k in MOMENTS}
        engine.optimizer.optimizer.state[partition] = {"step": step.clone(), **zeros}
    if stage == 3:
        for name, p in engine.module.named_parameters():
            if p.requires_grad:
                for kind in MOMENTS:
                    fragment, _ = engine.optimizer._get_fp32_opt_state_partition(p, False, kind)
                    start = fragment.numel() * engine.optimizer._get_param_partition_rank(p)
                    values = restored.tensors[kind][name].flatten()[start : start + fragment.numel()]
                    fragment.data[: values.numel()].copy_(values)
        return
    from deepspeed.utils import safe_set_full_optimizer_state

    engine.optimizer._lazy_init_hp_params_optimizer_state()
    for name, p in engine.module.named_parameters():
        if p.requires_grad:
            for kind in MOMENTS:
                safe_set_full_optimizer_state(p, restored.tensors[kind][name].to(p.device), kind)


def full_weights(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Trained parameters as whole fp32 tensors; collective in ZeRO stage 3."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, p in engine.module.named_parameters():
        if p.requires_grad:
            yield name, safe_get_full_fp32_param(p) if engine.zero_optimization_stage() == 3 else p.detach()


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def _full_states(engine: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Weight and moments of each trained parameter as whole tensors; collective over the workers."""
    from deepspeed.utils import safe_get_full_optimizer_state

    for name, weight in full_weights(engine):
        p = engine.module.get_parameter(name)
        if engine.zero_optimization_stage() == 0:
            state = engine.optimizer.state[p]
            yield name, {"weight": weight, **{k: state[k] for k in MOMENTS}}
        else:
            yield name, {"weight": weight, **{k: safe_get_full_optimizer_state(p, k) for k in MOMENTS}}


def _retire(directory: str, keep: int) -> None:
    """Remove all but the newest finished checkpoints, and unfinished ones older than those."""
    kept = finished(directory)[:keep]
    for name in storage.list_names(directory):
        if kept and storage.join(directory, name) < kept[-1]:
            storage.remove_tree(storage.join(directory, name))


def _gather(value: dict[str, Any]) -> list[dict[str, Any]]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def _raise_first(outcomes: list[dict[str, Any]], uri: str) -> None:
    for outcome in outcomes:
        if "error" in outcome:
            raise JobError(f"checkpoint {uri} could not be written: {outcome['error']}")
