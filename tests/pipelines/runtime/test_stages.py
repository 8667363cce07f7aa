"""What actors of a pipeline take of the machine that they share."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pipelines.runtime.stages import keep_to_one_core


def test_an_actor_without_a_gpu_keeps_to_its_core_and_one_with_a_gpu_may_have_more(
    threads: Callable[[int], None],
) -> None:
    threads(2)
    keep_to_one_core("cuda")
    assert torch.get_num_threads() == 2
    keep_to_one_core("cpu")
    assert torch.get_num_threads() == 1
