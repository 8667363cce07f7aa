from __future__ import annotations

import pytest

from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import choose_stage, deepspeed_config


@pytest.mark.parametrize(("batch", "workers", "micro"), [(16, 1, None), (16, 2, None), (16, 2, 2), (24, 4, 3)])
def test_the_batch_arithmetic_is_what_deepspeed_demands(batch: int, workers: int, micro: int | None) -> None:
    c = deepspeed_config(TrainConfig(shards="s", batch=batch, workers=str(workers), micro_batch=micro), workers, 1)
    assert c["train_batch_size"] == batch
    assert c["train_micro_batch_size_per_gpu"] * c["gradient_accumulation_steps"] * workers == batch


def test_bf16_is_autocast_and_leaves_weights_in_fp32() -> None:
    assert "torch_autocast" not in deepspeed_config(TrainConfig(shards="s"), 1, 0)
    c = deepspeed_config(TrainConfig(shards="s", precision="bf16"), 1, 0)
    assert c["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert "bf16" not in c


@pytest.mark.parametrize(
    ("parameters", "workers", "gib", "stage"),
    [
        (54_000_000, 1, 80, 0),  # nothing to partition
        (54_000_000, 8, 80, 1),  # base on any GPU
        (54_000_000, 8, 2, 1),
        (1_000_000_000, 8, 40, 1),
        (1_000_000_000, 8, 24, 2),
        (1_000_000_000, 8, 16, 3),
    ],
)
def test_the_stage_is_the_lowest_that_leaves_memory_to_activations(
    parameters: int, workers: int, gib: int, stage: int
) -> None:
    config = TrainConfig(shards="s", workers="1:8", batch=840)
    assert choose_stage(config, parameters, workers, gib << 30) == stage
    told = TrainConfig(shards="s", zero_stage=3)
    assert choose_stage(told, parameters, workers, gib << 30) == 3
