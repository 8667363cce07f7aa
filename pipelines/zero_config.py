"""The DeepSpeed configuration as a pure function of a run's settings."""

from __future__ import annotations

from typing import Any

from pipelines.config import TrainConfig

PERSISTENCE_THRESHOLD = 10_000
"""ZeRO-3 keeps smaller parameters whole on every worker: gathering them costs more than they take."""

ADAM_BETAS = (0.9, 0.95)
"""A shorter memory of squared gradients than the usual 0.999: with it the un-normalised transforms did not diverge
at learning rates where 0.999 did."""
ADAM_EPS = 1e-8


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed JSON: batch arithmetic, Adam, gradient clipping and the ZeRO stage.

    Weights, gradients and moments are fp32 in every stage; bf16 is torch's autocast inside the forward pass. The
    learning rate is set by the training loop at each step, from the crops seen.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = PERSISTENCE_THRESHOLD
    result: dict[str, Any] = {
        "train_batch_size": config.batch,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.gradient_clip,
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
