from __future__ import annotations

import pytest

from pipelines.train.config import TrainConfig
from pipelines.train.deepspeed_config import choose_stage, deepspeed_config, recomputes_activations


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


@pytest.mark.parametrize(
    ("mib_a_crop", "workers", "micro_batch", "gib", "recomputed"),
    [
        (123, 1, None, 80, False),  # 64 crops of 256 pixels of base in bf16 take 7.7 GiB
        (123, 1, None, 16, False),
        (123, 1, None, 12, True),
        (123, 8, None, 12, False),  # each worker has fewer crops
        (123, 1, 8, 12, False),  # or one after the other
    ],
)
def test_activations_are_recomputed_where_they_would_take_half_of_the_memory(
    mib_a_crop: int, workers: int, micro_batch: int | None, gib: int, recomputed: bool
) -> None:
    config = TrainConfig(shards="s", batch=64, workers=str(workers), micro_batch=micro_batch)
    assert recomputes_activations(config, mib_a_crop << 20, workers, gib << 30) == recomputed
    for told in (True, False):
        config = TrainConfig(shards="s", batch=64, activation_checkpointing=told)
        assert recomputes_activations(config, mib_a_crop << 20, 1, gib << 30) == told
