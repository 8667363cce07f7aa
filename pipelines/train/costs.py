"""What training costs, on every worker: time, waiting for data, bytes read, memory, and the use made of a GPU."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NamedTuple

import psutil

if TYPE_CHECKING:
    import torch

PEAK_FLOPS = {
    "GB200": 2500e12, "B200": 2250e12, "GH200": 989e12, "H200": 989e12, "H200 NVL": 836e12, "H100": 989e12,
    "H100 NVL": 836e12, "H100 PCIE": 756e12, "A100": 312e12, "A40": 150e12, "A30": 165e12, "A10": 125e12,
    "A10G": 70e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "V100": 125e12, "V100 PCIE": 112e12, "T4": 65e12,
}  # fmt: skip
"""Dense 16-bit operations a second, by the makers' data sheets, of devices in whose name all those words are; where
several fit, the one of more words counts."""


class Costs(NamedTuple):
    """What a stretch of training cost, over all workers."""

    crops: int
    seconds: float
    waited_s: float
    """Time that a worker waited for crops and for the drawing of samples, the mean over the workers."""
    read_bytes: int
    peak_memory_bytes: int
    """Peak of the worker with the most: of its GPU's memory, else of its process's."""
    flops: float
    """Floating-point operations that the networks ran, those that recompute activations included, over all workers."""
    peak_flops: float | None
    """What the GPUs could have done in that time; None where that is not known."""
    worker_s: float
    """Seconds times workers."""
    workers: int
    """Workers at the end of it."""

    def joined(self, later: Costs) -> Costs:
        """Add a later stretch."""
        peaks = [peak for peak in (self.peak_flops, later.peak_flops) if peak is not None]
        return Costs(
            crops=self.crops + later.crops, seconds=self.seconds + later.seconds,
            waited_s=self.waited_s + later.waited_s, read_bytes=self.read_bytes + later.read_bytes,
            peak_memory_bytes=max(self.peak_memory_bytes, later.peak_memory_bytes), flops=self.flops + later.flops,
            peak_flops=sum(peaks) if len(peaks) == 2 else None,
            worker_s=self.worker_s + later.worker_s, workers=later.workers,
        )  # fmt: skip

    def metrics(self) -> dict[str, float]:
        """Give the numbers that MLflow gets."""
        seconds = max(self.seconds, 1e-9)
        values = {
            "crops_per_s": self.crops / seconds,
            "crops_per_s_per_worker": self.crops / max(self.worker_s, 1e-9),
            "waiting_share": self.waited_s / seconds,
            "read_mb_per_s": self.read_bytes / 1e6 / seconds,
            "peak_memory_gib": self.peak_memory_bytes / 2**30,
            "tflops_per_s": self.flops / seconds / 1e12,
            "workers": float(self.workers),
        }
        if self.peak_flops:
            values["hfu"] = self.flops / self.peak_flops
        return values


class Meter:
    """Counts on one worker what a stretch of training costs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._reset()

    def add(self, crops: int, flops: float, waited_s: float, read_bytes: int) -> None:
        """Count a step: its crops and operations over all workers, this worker's wait and bytes."""
        self._crops += crops
        self._flops += flops
        self._waited_s += waited_s
        self._read_bytes += read_bytes

    def collect(self) -> Costs:
        """Join all workers' counts and begin anew; collective."""
        import torch
        import torch.distributed as dist

        seconds = time.monotonic() - self._since
        mine = torch.tensor([self._waited_s, self._read_bytes, _peak_memory(self.device)], dtype=torch.float64)
        every = [torch.zeros_like(mine, device=self.device) for _ in range(dist.get_world_size())]
        dist.all_gather(every, mine.to(self.device))
        table = torch.stack(every).cpu()
        peak, worker_s = peak_flops(self.device), seconds * len(every)
        costs = Costs(
            crops=self._crops, seconds=seconds, waited_s=float(table[:, 0].mean()),
            read_bytes=int(table[:, 1].sum()), peak_memory_bytes=int(table[:, 2].max()),
            flops=self._flops, peak_flops=peak * worker_s if peak else None,
            worker_s=worker_s, workers=len(every),
        )  # fmt: skip
        self._reset()
        return costs

    def _reset(self) -> None:
        self._since, self._crops, self._flops = time.monotonic(), 0, 0.0
        self._waited_s, self._read_bytes = 0.0, 0


def peak_flops(device: torch.device) -> float | None:
    """Give the operations a second of a GPU that is known; None for others, whose utilisation is then absent."""
    import torch

    if device.type != "cuda":
        return None
    words = set(re.split(r"[ \-]", torch.cuda.get_device_name(device).upper()))
    known = [name for name in PEAK_FLOPS if words.issuperset(name.split())]
    return PEAK_FLOPS[max(known, key=lambda name: len(name.split()))] if known else None


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)  # Ray's object store is everybody's, and grows to its own limit
