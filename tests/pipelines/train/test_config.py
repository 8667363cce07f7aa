"""What a training can and cannot be told, and what makes two runs the same."""

from __future__ import annotations

import pytest

from corrdiff.errors import UsageError
from pipelines.options import identity
from pipelines.train.config import TrainConfig


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batch": 10, "workers": "3"}, "--batch 10 cannot be dealt equally to 3 workers; .* can: 9 and 12"),
        ({"batch": 2, "workers": "3"}, "the nearest that can: 3"),
        ({"batch": 16, "workers": "2", "micro_batch": 3}, "to 2 workers, in micro-batches of 3; .*: 12 and 18"),
        ({"batch": 16, "workers": "2:4"}, "to every number of workers in 2:4; the nearest that can: 12 and 24"),
        ({"workers": "4:2"}, "must be a number or MIN:MAX, not '4:2'"),
        ({"workers": "0"}, "must be a number or MIN:MAX"),
        ({"workers": "many"}, "must be a number or MIN:MAX"),
        ({"micro_batch": 0}, "--micro-batch must be at least 1"),
        ({"crop": 100}, "multiple of 64"),
        ({"name": "a/b"}, "plain name"),
        ({"crops_total": 0}, "--crops-total must be at least 1"),
        ({"lpips_weight": 1.5}, "--lpips-weight"),
        ({"checkpoint_minutes": 0.0}, "--checkpoint-minutes must be over 0, not 0.0"),
        ({"validate_minutes": float("nan")}, "--validate-minutes must be over 0, not nan"),
        ({"validate_every": 0}, "--validate-every must be at least 1"),
        ({"transforms_share": 0.7, "score_share": 0.4}, "together at most 1, not 0.7 and 0.4"),
        ({"texture_weight": -1.0}, "--texture-weight must be at least 0, not -1.0"),
        ({"score_share": -0.1}, "--transforms-share and --score-share must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_option_named(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        TrainConfig(shards="s", **options)  # type: ignore[arg-type]


def test_identity_ignores_what_may_change_on_resume_and_nothing_else() -> None:
    one = TrainConfig(shards="s", workers="1", zero_stage=0, storage="a")
    assert identity(one) == identity(TrainConfig(shards="s", workers="1:2", zero_stage=3, storage="b", batch=16))
    for change in ({"lr": 1e-4}, {"seed": 1}, {"batch": 32}, {"beta": 0.1}, {"crops_total": 7}, {"precision": "bf16"}):
        assert identity(one) != identity(TrainConfig(shards="s", **change))  # type: ignore[arg-type]
