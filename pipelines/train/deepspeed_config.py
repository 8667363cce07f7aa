"""The DeepSpeed configuration as a pure function of a run's settings."""

from __future__ import annotations

from typing import Any

from pipelines.train.config import TrainConfig

PERSISTENCE_THRESHOLD = 10_000
"""ZeRO-3 keeps smaller parameters whole on every worker: gathering them costs more than they take."""

ADAM_BETAS = (0.9, 0.95)
"""A shorter memory of squared gradients than the usual 0.999: with it the un-normalised transforms did not diverge
at learning rates where 0.999 did."""
ADAM_EPS = 1e-8

STATE_BYTES = 16
"""Bytes of weight, gradient and Adam's two moments, for each parameter (as in arXiv 1910.02054, but all fp32)."""

STATES_SHARE = 0.25
"""Share of a worker's memory that states may take before more of them is partitioned: activations need the rest."""

ACTIVATIONS_SHARE = 0.5
"""Share of a worker's memory that activations may take before they are computed again: the rest is for states, for
what a layer needs while it runs, and for what the allocator cannot use."""


def choose_stage(config: TrainConfig, parameters: int, world_size: int, memory_bytes: int) -> int:
    """Choose the ZeRO stage: the run's, or the lowest that does.

    One worker: 0, there is nothing to partition. Else 1, which costs no traffic over plain data parallelism; 2 where a
    quarter of a worker's memory is too little for that, and 3 where it is too little for 2: 3 gathers weights anew in
    each pass.
    """
    if config.zero_stage != "auto":
        return config.zero_stage
    if world_size == 1:
        return 0
    room = STATES_SHARE * memory_bytes / parameters
    partitioned = {1: 8, 2: 12}
    for stage, part in partitioned.items():
        if STATE_BYTES - part + part / world_size <= room:
            return stage
    return 3


def recomputes_activations(config: TrainConfig, activation_bytes: float, world_size: int, memory_bytes: int) -> bool:
    """Decide whether activations are computed again on the way back: as the run says, else where half of a worker's
    memory is too little to keep them.

    Args:
        activation_bytes: what a crop keeps for the backward pass, in the stretch that keeps the most.
        memory_bytes: of the worker with the least.
    """
    if config.activation_checkpointing is not None:
        return config.activation_checkpointing
    return activation_bytes * config.micro_batch_size(world_size) > ACTIVATIONS_SHARE * memory_bytes


def deepspeed_config(config: TrainConfig, world_size: int, stage: int) -> dict[str, Any]:
    """Give DeepSpeed's JSON: batch arithmetic, Adam, gradient clipping and the ZeRO stage.

    Weights, gradients and moments are fp32 in every stage; bf16 is torch's autocast inside the forward pass. The
    learning rate is set by the training loop at each step, from the crops seen. In stage 0 the loop clips too: there
    DeepSpeed keeps the gradient's norm to itself.
    """
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = PERSISTENCE_THRESHOLD
    result: dict[str, Any] = {
        "train_batch_size": config.batch,
        "train_micro_batch_size_per_gpu": config.micro_batch_size(world_size),
        "gradient_accumulation_steps": config.accumulation(world_size),
        "gradient_clipping": config.gradient_clip if stage > 0 else 0.0,
        "optimizer": {
            "type": "Adam",
            "params": {
                "lr": config.lr, "betas": list(ADAM_BETAS), "eps": ADAM_EPS, "weight_decay": 0.0,
                "torch_adam": True, "adam_w_mode": True,
            },
        },
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 40,
        "wall_clock_breakdown": False,
    }  # fmt: skip
    if config.precision == "bf16":
        result["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return result
