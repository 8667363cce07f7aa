"""Everything of DeepSpeed's that is not public and that this project uses.

tests/pipelines/train/test_deepspeed_private.py uses each on a real engine: an upgrade of DeepSpeed has to pass it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def use_plain_gloo() -> None:
    """Keep DeepSpeed from its own all-reduce in shared memory, which it would compile at every first start on a CPU;
    gloo needs no compiler."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def begin_moments(engine: Any, kinds: tuple[str, ...], step: Tensor) -> None:
    """Give Adam in a fresh engine of ZeRO stage 1 to 3 the state that it would make at its first step, after `step`
    steps: moments of zero. By itself DeepSpeed lets go of those of all groups of parameters but the first."""
    optimizer = engine.optimizer
    partitions = (
        optimizer.fp32_partitioned_groups_flat
        if engine.zero_optimization_stage() == 3
        else optimizer.single_partition_of_fp32_groups
    )
    for partition in partitions:
        zeros = {kind: torch.zeros_like(partition) for kind in kinds}
        optimizer.optimizer.state[partition] = {"step": step.clone(), **zeros}
    if engine.zero_optimization_stage() != 3:
        optimizer._lazy_init_hp_params_optimizer_state()


def set_moment(engine: Any, parameter: nn.Parameter, kind: str, whole: Tensor) -> None:
    """Put this worker's part of a moment into an engine of ZeRO stage 1 to 3, after `begin_moments`."""
    if engine.zero_optimization_stage() == 3:
        fragment, _ = engine.optimizer._get_fp32_opt_state_partition(parameter, False, kind)
        start = fragment.numel() * engine.optimizer._get_param_partition_rank(parameter)
        values = whole.flatten()[start : start + fragment.numel()]
        fragment.data[: values.numel()].copy_(values)
        return
    from deepspeed.utils import safe_set_full_optimizer_state

    safe_set_full_optimizer_state(parameter, whole.to(parameter.device), kind)
