"""What a resume needs, and how it is kept: checkpoints that any number of workers and any ZeRO stage can read.

    RUN/PHASE/checkpoints/crops-000000004096/
        part-0-of-2.safetensors   weight/NAME, ema/NAME, exp_avg/NAME, exp_avg_sq/NAME: whole fp32 tensors
        COMPLETE.json             written last: progress, and size and SHA-256 of each part

A directory without COMPLETE.json is not a checkpoint. A plain program reads the parts with safetensors alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from corrdiff.ema import Ema
from corrdiff.errors import JobError, UsageError
from pipelines.files import storage
from pipelines.files.records import read_record
from pipelines.train import deepspeed_private
from pipelines.train.epoch_order import Cursor

COMPLETE = "COMPLETE.json"

MOMENTS = ("exp_avg", "exp_avg_sq")

T = TypeVar("T")


class TrainProgress(NamedTuple):
    """How far a run is, beside its tensors."""

    crops_seen: int
    optimizer_steps: int
    cursor: Cursor


class Restored(NamedTuple):
    """A checkpoint in memory: whole tensors by kind and name."""

    progress: TrainProgress
    tensors: dict[str, dict[str, Tensor]]
    """"weight", "ema", "exp_avg", "exp_avg_sq" -> name -> tensor."""


@dataclass(frozen=True)
class PartFile:
    """What a part has to be, for whoever reads it."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Complete:
    """The marker of a finished checkpoint, COMPLETE.json."""

    crops_seen: int
    optimizer_steps: int
    cursor: Cursor
    parts: dict[str, PartFile]


_NAME = re.compile(r"crops-(\d{12,})")
_PART = re.compile(r"part-\d+-of-\d+\.safetensors")


def begun(directory: str) -> list[str]:
    """List the URIs of all checkpoints under RUN/PHASE/checkpoints, finished or not, the newest first.

    What is called otherwise, say a copy that somebody keeps there, is none.
    """
    names = [name for name in storage.list_names(directory) if _NAME.fullmatch(name)]
    return [storage.join(directory, name) for name in sorted(names, key=lambda name: int(name[6:]), reverse=True)]


def finished(directory: str) -> list[str]:
    """List the URIs of the finished checkpoints under RUN/PHASE/checkpoints, the newest first."""
    return [uri for uri in begun(directory) if storage.exists(storage.join(uri, COMPLETE))]


def latest(directory: str) -> str | None:
    """Give the URI of the newest finished checkpoint."""
    return next(iter(finished(directory)), None)


def load_newest(directory: str) -> tuple[Restored | None, list[str]]:
    """Load the newest checkpoint that is what was written, and say what is wrong with newer ones.

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
        marker = read_record(storage.join(uri, COMPLETE), Complete)
    except (FileNotFoundError, UsageError) as error:
        raise JobError(f"checkpoint {uri}: {COMPLETE} cannot be read ({error})") from None
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, expected in sorted(marker.parts.items()):
        try:
            data = storage.read_bytes(storage.join(uri, name), storage.PATIENT_ATTEMPTS)
        except FileNotFoundError:
            raise JobError(f"checkpoint {uri}: {name} is missing") from None
        if _part_file(data) != expected:
            raise JobError(f"checkpoint {uri}: {name} is damaged")
        for key, tensor in safetensors.torch.load(data).items():
            kind, _, parameter = key.partition("/")
            tensors.setdefault(kind, {})[parameter] = tensor
    return Restored(TrainProgress(marker.crops_seen, marker.optimizer_steps, marker.cursor), tensors)


def save(directory: str, engine: Any, ema: Ema, progress: TrainProgress, keep: int) -> str:
    """Write a checkpoint; every rank calls this. Parts first, the marker when all of them are there. The newest `keep`
    finished ones stay.

    Raises `JobError` on every rank where one of them could not write.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    uri = storage.join(directory, f"crops-{progress.crops_seen:012d}")
    name = f"part-{rank}-of-{world_size}.safetensors"
    data = safetensors.torch.save(_part_tensors(engine, ema, rank, world_size))
    failure = _failure_of(lambda: storage.write_bytes(storage.join(uri, name), data, storage.PATIENT_ATTEMPTS))
    written = _gather((name, _part_file(data), failure))
    _raise_first((failure for _, _, failure in written), uri)

    def mark() -> None:
        marker = Complete(**progress._asdict(), parts={name: file for name, file, _ in written})
        storage.write_json(storage.join(uri, COMPLETE), asdict(marker))
        _retire(directory, keep)

    _raise_first(_gather(_failure_of(mark) if rank == 0 else None), uri)
    return uri


def restore_moments(engine: Any, restored: Restored) -> None:
    """Put Adam's moments and step count into a fresh engine, whatever its ZeRO stage and number of workers.

    The weights must have been in the module before DeepSpeed wrapped it.
    """
    step = torch.tensor(float(restored.progress.optimizer_steps))
    trained = trained_parameters(engine.module)
    if engine.zero_optimization_stage() == 0:
        for name, p in trained:
            moments = {kind: restored.tensors[kind][name].to(p.device) for kind in MOMENTS}
            engine.optimizer.state[p] = {"step": step.clone(), **moments}
        return
    deepspeed_private.begin_moments(engine, MOMENTS, step)
    for name, p in trained:
        for kind in MOMENTS:
            deepspeed_private.set_moment(engine, p, kind, restored.tensors[kind][name])


def full_weights(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Give the trained parameters as whole fp32 tensors; collective in ZeRO stage 3."""
    from deepspeed.utils import safe_get_full_fp32_param

    for name, p in trained_parameters(engine.module):
        yield name, safe_get_full_fp32_param(p) if engine.zero_optimization_stage() == 3 else p.detach()


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List the parameters that take a gradient, by name."""
    return [(name, p) for name, p in module.named_parameters() if p.requires_grad]


def _full_states(engine: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Give weight and moments of each trained parameter as whole tensors; collective over the workers."""
    from deepspeed.utils import safe_get_full_optimizer_state

    for name, weight in full_weights(engine):
        p = engine.module.get_parameter(name)
        if engine.zero_optimization_stage() == 0:
            state = engine.optimizer.state[p]
            yield name, {"weight": weight, **{k: state[k] for k in MOMENTS}}
        else:
            yield name, {"weight": weight, **{k: safe_get_full_optimizer_state(p, k) for k in MOMENTS}}


def _part_tensors(engine: Any, ema: Ema, rank: int, world_size: int) -> dict[str, Tensor]:
    """Collect the states that this rank writes: those of its share of the parameters. Collective over the workers."""
    tensors: dict[str, Tensor] = {}
    for i, (name, state) in enumerate(_full_states(engine)):
        if i % world_size == rank:
            for kind, tensor in state.items():
                tensors[f"{kind}/{name}"] = tensor.detach().float().cpu().clone()
            tensors[f"ema/{name}"] = ema.average[name].cpu().clone()
    return tensors


def _part_file(data: bytes) -> PartFile:
    return PartFile(len(data), hashlib.sha256(data).hexdigest())


def _retire(directory: str, keep: int) -> None:
    """Remove all but the newest finished checkpoints, and unfinished ones older than those: of each what `save` writes,
    and the directory where nothing else is in it. What a killed worker was writing goes everywhere."""
    kept = finished(directory)[:keep]
    every = begun(directory)
    for uri in every[: every.index(kept[-1]) + 1] if kept else ():
        storage.remove_unfinished(uri)
    for uri in every[every.index(kept[-1]) + 1 :] if kept else ():
        storage.remove_file(storage.join(uri, COMPLETE))  # the first to go: without it the rest is no checkpoint
        for name in storage.list_names(uri):
            if _PART.fullmatch(name):
                storage.remove_file(storage.join(uri, name))
        storage.remove_unfinished(uri)
        storage.remove_empty(uri)


def _failure_of(write: Callable[[], None]) -> str | None:
    """Write, and say why that could not be."""
    try:
        write()
    except (OSError, JobError) as error:
        return str(error)
    return None


def _gather(value: T) -> list[T]:
    """Give every rank the values of all."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def _raise_first(failures: Iterable[str | None], uri: str) -> None:
    for failure in failures:
        if failure is not None:
            raise JobError(f"checkpoint {uri} could not be written: {failure}")
