"""What actors of a pipeline take of the machine that they share."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch

from pipelines.runtime.stages import as_many_as_fit, keep_to_one_core


def test_an_actor_without_a_gpu_keeps_to_its_core_and_one_with_a_gpu_may_have_more(
    threads: Callable[[int], None],
) -> None:
    threads(2)
    keep_to_one_core("cuda")
    assert torch.get_num_threads() == 2
    keep_to_one_core("cpu")
    assert torch.get_num_threads() == 1


class Memory:
    """Work that takes as much memory as it has items, of which so many fit at a time."""

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.room, self.error = room, error
        self.taken: list[weakref.ref[torch.Tensor]] = []
        self.tried: list[int] = []

    def work(self, items: list[int]) -> list[str]:
        assert not any(taken() is not None for taken in self.taken), "an attempt's memory is still held"
        self.tried.append(len(items))
        mine = torch.zeros(len(items))
        self.taken.append(weakref.ref(mine))
        if len(items) > self.room:
            raise self.error(f"CUDA out of memory: {mine.nbytes} bytes\nand advice")
        return [f"done {item}" for item in items]


def _too_large(item: int, reason: str) -> str:
    return f"{item}: {reason}"


def test_what_does_not_fit_together_is_done_in_parts_and_in_order() -> None:
    memory = Memory(room=2)
    assert as_many_as_fit(memory.work, list(range(7)), _too_large) == [f"done {i}" for i in range(7)]
    assert memory.tried == [7, 3, 1, 2, 4, 2, 2]


def test_what_fits_is_done_at_once() -> None:
    memory = Memory(room=7)
    as_many_as_fit(memory.work, list(range(7)), _too_large)
    assert memory.tried == [7]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_what_does_not_fit_alone_is_said_of_each(error: type[Exception]) -> None:
    memory = Memory(room=0, error=error)
    said = [f"{i}: CUDA out of memory: 4 bytes" for i in range(3)]
    assert as_many_as_fit(memory.work, list(range(3)), _too_large) == said


def test_another_error_is_not_tried_again() -> None:
    tried: list[int] = []

    def work(items: list[int]) -> list[str]:
        tried.append(len(items))
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    with pytest.raises(RuntimeError, match="EXECUTION"):
        as_many_as_fit(work, [1, 2], _too_large)
    assert tried == [2]
