"""Drawing beside the step: while one batch trains, the next is drawn and on its way to the device."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch

from corrdiff.config import TransformConfig
from pipelines.train import samples
from pipelines.train.batch import Batch
from pipelines.train.samples import Noise, Packed, Sample

MOST_THREADS = 8
"""That draw crops side by side where a GPU trains; a crop of 256 pixels takes one of them about 2 ms."""

T = TypeVar("T")


class Drawn(NamedTuple):
    """A batch with its sample, which may still be on its way to the device."""

    batch: Batch
    packed: Packed
    arrived: torch.cuda.Event | None
    """What a stream of the GPU has to wait for; None on the CPU."""

    def sample(self) -> Sample:
        """Give the sample on its device; the host does not wait for it."""
        if self.arrived is not None:
            stream = torch.cuda.current_stream(self.packed.data.device)
            stream.wait_event(self.arrived)
            self.packed.data.record_stream(stream)
        return self.packed.sample()


class Drawer:
    """Draws batches for one worker."""

    def __init__(self, seed: int, crop: int, config: TransformConfig, device: torch.device) -> None:
        self._drawn_by = seed, crop, config
        self._device = device
        self._threads: ThreadPoolExecutor | None = None
        if device.type == "cuda":  # on a CPU the networks have all cores
            workers_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            count = min(MOST_THREADS, len(os.sched_getaffinity(0)) // workers_here)
            self._threads = ThreadPoolExecutor(max(1, count), thread_name_prefix="draw")
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def draw(self, batch: Batch, noise: Iterable[Noise]) -> Drawn:
        """Draw a batch, with the noise that is wanted, and begin to copy it beside what the device computes."""
        packed = samples.pack(batch, *self._drawn_by, noise, self._threads)
        if self._threads is None:
            return Drawn(batch, packed, None)
        with torch.cuda.stream(self._stream):
            there = packed._replace(data=packed.data.to(self._device, non_blocking=True))
            return Drawn(batch, there, self._stream.record_event())


_END = object()


def ahead(values: Iterator[T]) -> Iterator[T]:
    """Give the same values, and make the next one in a thread of its own while the one before is used.

    Raises what making one raises, in its place.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    try:
        made = thread.submit(next, values, _END)
        while (value := made.result()) is not _END:
            made = thread.submit(next, values, _END)
            yield value  # type: ignore[misc]
    finally:
        thread.shutdown(wait=False)  # what it may still wait for, nobody needs any more
