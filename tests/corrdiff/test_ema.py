from __future__ import annotations

import pytest
import torch

from corrdiff.ema import RAMP_UP, Ema


def _ema(start: float, halflife_crops: float) -> Ema:
    return Ema([("w", torch.full((3,), start))], halflife_crops)


def test_the_average_starts_at_the_weights_and_does_not_share_them() -> None:
    weight = torch.ones(3)
    ema = Ema([("w", weight)], 100)
    weight.add_(1)
    assert torch.equal(ema.average["w"], torch.ones(3))


def test_after_a_half_life_the_average_has_gone_half_the_way() -> None:
    ema = _ema(0.0, 1000)
    ema.update([("w", torch.ones(3))], batch_crops=1000, crops_seen=10**9)
    assert torch.allclose(ema.average["w"], torch.full((3,), 0.5))


def test_the_average_counts_pictures_and_not_batches() -> None:
    whole, split = _ema(0.0, 1000), _ema(0.0, 1000)
    whole.update([("w", torch.ones(3))], 64, 10**9)
    for _ in range(4):
        split.update([("w", torch.ones(3))], 16, 10**9)
    assert torch.allclose(whole.average["w"], split.average["w"], rtol=1e-5)


def test_early_on_the_half_life_is_a_share_of_the_pictures_seen() -> None:
    ema = _ema(0.0, 1e6)
    ema.update([("w", torch.ones(3))], batch_crops=10, crops_seen=round(10 / RAMP_UP))
    assert torch.allclose(ema.average["w"], torch.full((3,), 0.5))


def test_equal_weights_leave_the_average_where_it_is() -> None:
    ema = _ema(0.25, 10)
    ema.update([("w", torch.full((3,), 0.25))], 5, 100)
    assert torch.equal(ema.average["w"], torch.full((3,), 0.25))


def test_weights_in_bf16_are_averaged_in_float32() -> None:
    ema = Ema([("w", torch.zeros(1, dtype=torch.bfloat16))], 1e4)
    for _ in range(10):
        ema.update([("w", torch.ones(1, dtype=torch.bfloat16))], batch_crops=1, crops_seen=10**9)
    assert ema.average["w"].dtype == torch.float32
    assert float(ema.average["w"]) == pytest.approx(1 - 0.5 ** (10 / 1e4), rel=1e-3)


def test_the_average_keeps_no_graph_of_the_weights() -> None:
    weight = torch.ones(3, requires_grad=True)
    ema = Ema([("w", weight)], 10)
    ema.update([("w", weight * 2)], 1, 100)
    assert not ema.average["w"].requires_grad
