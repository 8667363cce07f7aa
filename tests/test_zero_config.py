from __future__ import annotations

import pytest

from corrdiff.errors import UsageError
from pipelines.config import TrainConfig
from pipelines.zero_config import deepspeed_config


@pytest.mark.parametrize(("batch", "workers", "micro"), [(16, 1, None), (16, 2, None), (16, 2, 2), (24, 4, 3)])
def test_the_batch_arithmetic_is_what_deepspeed_demands(batch: int, workers: int, micro: int | None) -> None:
    c = deepspeed_config(TrainConfig(shards="s", batch=batch, workers=workers, micro_batch=micro))
    assert c["train_batch_size"] == batch
    assert c["train_micro_batch_size_per_gpu"] * c["gradient_accumulation_steps"] * workers == batch


def test_bf16_is_autocast_and_leaves_weights_in_fp32() -> None:
    assert "torch_autocast" not in deepspeed_config(TrainConfig(shards="s"))
    c = deepspeed_config(TrainConfig(shards="s", precision="bf16"))
    assert c["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert "bf16" not in c


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 10, "workers": 3}, "multiple of --workers"),
        ({"batch": 16, "workers": 2, "micro_batch": 3}, "not a multiple of --micro-batch"),
        ({"crop": 100}, "multiple of 64"),
        ({"name": "a/b"}, "plain name"),
        ({"images_total": 0}, "--images-total must be at least 1"),
        ({"lpips_weight": 1.5}, "--lpips-weight"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_option_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TrainConfig(shards="s", **options)  # type: ignore[arg-type]


def test_identity_ignores_what_may_change_on_resume_and_nothing_else() -> None:
    one = TrainConfig(shards="s", workers=1, zero_stage=0, storage="a")
    assert one.identity() == TrainConfig(shards="s", workers=2, zero_stage=3, storage="b", batch=16).identity()
    for change in ({"lr": 1e-4}, {"seed": 1}, {"batch": 32}, {"beta": 0.1}, {"images_total": 7}, {"precision": "bf16"}):
        assert one.identity() != TrainConfig(shards="s", **change).identity()  # type: ignore[arg-type]
