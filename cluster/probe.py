"""What one node of a cluster says of itself: an actor of `preflight`, one on each node."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import time
from importlib import metadata
from typing import NamedTuple

from cluster.ray_private import spill_directory
from corrdiff.uris import open_fs, scheme

PACKAGES = "ray", "torch", "deepspeed", "mlflow", "s3fs"
STORAGE_BYTES = 32 << 20
REDUCED_BYTES = 64 << 20
MULTIPLIED = 2048
"""Side of the matrices by which a GPU is tried; as a sum of ones it is exact in bfloat16 too."""
REDUCTIONS = 4
TIMEOUT_S = 120.0


class Facts(NamedTuple):
    """What one node says of itself."""

    node: str
    """Address, and what tells nodes of one address apart."""
    versions: dict[str, str]
    cpus: float
    gpus_of_ray: int
    gpus: list[tuple[str, int]]
    """Name and bytes of memory of each that the driver knows."""
    memory: int
    object_store: int
    shared_memory: int
    spill_disk: int
    """Bytes free where Ray spills."""
    skew_s: float = 0.0
    """Against the driver's clock."""
    storage: Transfer | None = None
    broken_gpus: tuple[str, ...] = ()
    """What each said that could not compute."""
    mlflow: str | None = None
    """What is wrong; empty where nothing is, None where nobody looked."""


class Transfer(NamedTuple):
    """An object that was written, read and deleted."""

    write_s: float = 0.0
    read_s: float = 0.0
    error: str = ""
    unseen: str = ""
    """A node whose object cannot be seen from this one."""


class Reduced(NamedTuple):
    """A sum over all ranks."""

    backend: str
    ranks: int
    seconds: float = 0.0
    error: str = ""


class Probe:
    """A Ray actor, one on each node."""

    def facts(self, node: str, resources: dict[str, float]) -> Facts:
        import psutil

        versions = {"python": platform.python_version()}
        for name in PACKAGES:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        with contextlib.suppress(Exception):  # where torch is missing or broken, that row says so
            import torch

            versions["cuda"] = str(torch.version.cuda or "none")
        return Facts(
            node=node, versions=versions, cpus=resources.get("CPU", 0), gpus_of_ray=int(resources.get("GPU", 0)),
            gpus=_visible_gpus(), memory=int(psutil.virtual_memory().total),
            object_store=int(resources.get("object_store_memory", 0)),
            shared_memory=shutil.disk_usage("/dev/shm").total, spill_disk=shutil.disk_usage(spill_directory()).free,
        )  # fmt: skip

    def now(self) -> float:
        return time.time()

    def transfer(self, uri: str) -> Transfer:
        """Write an object and read it back; `delete` removes it."""
        data = os.urandom(STORAGE_BYTES)
        try:
            fs, path = open_fs(uri)
            if scheme(uri) is None:  # elsewhere it might make a bucket
                fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            fs.pipe_file(path, b"small")  # what is refused is refused with a reason; in the middle of much, by a reset
            started = time.perf_counter()
            fs.pipe_file(path, data)
            written = time.perf_counter()
            back = fs.cat_file(path)
            read = time.perf_counter()
        except Exception as error:  # whatever a driver of some storage raises is what is to be said
            return Transfer(error=first_line(error))
        if back != data:
            return Transfer(error="what was read is not what was written")
        return Transfer(written - started, read - written)

    def sees(self, uri: str) -> bool:
        with contextlib.suppress(Exception):
            fs, path = open_fs(uri)
            return int(fs.info(path)["size"]) == STORAGE_BYTES
        return False

    def delete(self, uri: str) -> str:
        """Delete an object, which may never have been written; returns what went wrong, if anything."""
        try:
            fs, path = open_fs(uri)
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)
                if scheme(uri) is None:
                    fs.rmdir(path.rsplit("/", 1)[0])
        except Exception as error:
            return f"deleting: {first_line(error)}"
        return ""

    def mlflow(self, uri: str | None, alone: bool) -> str | None:
        """Say what is wrong with the tracking server, seen from here; None where no server is named."""
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            return None
        if uri.startswith("sqlite:") and not alone:
            return "a sqlite file is on one machine only; start a server"
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "10"
        from mlflow import MlflowClient

        try:
            MlflowClient(uri).search_experiments(max_results=1)
        except Exception as error:
            return f"{_without_password(uri)} does not answer ({type(error).__name__})"
        return ""

    def compute(self) -> tuple[str, str]:
        """Let this actor's GPU multiply in each arithmetic that is used; returns its node and what went wrong, if
        anything: a driver too old for this CUDA, memory that others hold, a wrong product."""
        import ray

        node = node_name(ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())
        return node, multiplied("cuda")

    def open_port(self) -> tuple[str, int]:
        """Give this node's address and a free port."""
        import ray

        with socket.socket() as s:
            s.bind(("", 0))
            return ray.util.get_node_ip_address(), int(s.getsockname()[1])

    def reduce(self, backend: str, at: tuple[str, int], rank: int, ranks: int) -> Reduced:
        """Sum a tensor with all other ranks, a few times; the fastest counts."""
        import datetime

        import torch
        import torch.distributed as dist

        try:
            dist.init_process_group(
                backend, init_method=f"tcp://{at[0]}:{at[1]}", rank=rank, world_size=ranks,
                timeout=datetime.timedelta(seconds=TIMEOUT_S / 2),
            )  # fmt: skip
            x = torch.ones(REDUCED_BYTES // 4, device="cuda" if backend == "nccl" else "cpu")
            best = float("inf")
            for i in range(1 + REDUCTIONS):  # the first makes the connections
                x.fill_(1.0)
                dist.barrier()
                started = time.perf_counter()
                dist.all_reduce(x)
                right = bool((x == ranks).all())
                best = min(best, time.perf_counter() - started) if i else best
                if not right:
                    return Reduced(backend, ranks, error=f"rank {rank} got a wrong sum")
            dist.destroy_process_group()
        except Exception as error:
            return Reduced(backend, ranks, error=f"rank {rank}: {first_line(error)}")
        return Reduced(backend, ranks, best)


def multiplied(device: str) -> str:
    """Multiply matrices on a device and look at the products; returns what went wrong, if anything."""
    import torch

    try:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            ones = torch.ones(MULTIPLIED, MULTIPLIED, dtype=dtype, device=device)
            if not bool((ones @ ones == MULTIPLIED).all()):
                return f"a wrong product in {str(dtype).removeprefix('torch.')}"
    except Exception as error:  # whatever a driver says
        return first_line(error)
    return ""


def node_name(address: str, node_id: str) -> str:
    """Name a node: its address, and what tells nodes of one address apart."""
    return f"{address} ({node_id[-6:]})"


def _visible_gpus() -> list[tuple[str, int]]:
    """List all GPUs of the machine by name and bytes of memory, whatever of them is given to this process."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no driver, no library: no GPU that could be used
        return []
    found = []
    for i in range(pynvml.nvmlDeviceGetCount()):
        handle = pynvml.nvmlDeviceGetHandleByIndex(i)
        found.append((str(pynvml.nvmlDeviceGetName(handle)), int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)))
    return found


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else uri
