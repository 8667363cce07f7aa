"""The entropy model with context: what it estimates is what its frozen tables write, at every quality."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from corrdiff.config import CodecConfig, DenoiserConfig, TransformConfig, tiny
from corrdiff.errors import UsageError
from corrdiff.networks.context_model import ContextEntropyModel, logistic_likelihood
from corrdiff.networks.model import CorrDiffModel
from tests.support.coding import encode

CONFIG = TransformConfig(latent_channels=12, hyper_channels=8, slices=(2, 3, 7), context_channels=16)


@pytest.fixture(scope="module")
def model() -> ContextEntropyModel:
    """One of few channels, with lively symbols and contexts."""
    torch.manual_seed(0)
    model = ContextEntropyModel(CONFIG)
    with torch.no_grad():
        model.hyper_analysis.layers[-1].weight.mul_(20.0)
        model.scale_bias_QM.copy_(
            (32 + torch.arange(-1.75, 2, 0.5))[:, None] / 8
        )  # scales around 3, as the latents have
        for context in (*model.first, *model.second):
            context.out.weight.mul_(4.0)
    return model


def _latents(batch: int = 2) -> Tensor:
    return 3 * torch.randn(batch, 12, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quality", [0, 3, 7])
def test_the_streams_take_what_the_model_estimates(model: ContextEntropyModel, quality: int) -> None:
    y, tables = _latents(), model.freeze(rate_weight=0)
    with torch.no_grad():
        estimate = model(y, torch.full((2,), quality), None, None)
        coded = encode(tables, y, model.hyper_analysis(y), 16 * quality)
    for bits, streams in zip(estimate.bits_B.tolist(), coded.streams, strict=True):
        assert abs(8 * (len(streams.z) + len(streams.y)) - bits) <= 0.02 * bits + 8 * 16
    # Means differ by a part of a 64th, which now and then falls on the other side of a rounding.
    assert float((estimate.y_hat_BMhw - coded.y_hat_BMhw).abs().mean()) < 0.03


def test_the_encoder_gives_up_what_costs_more_than_it_is_worth(model: ContextEntropyModel) -> None:
    y, weight = _latents(), 0.1
    nearest, chosen = model.freeze(rate_weight=0), model.freeze(rate_weight=weight)
    with torch.no_grad():
        z = model.hyper_analysis(y)
        bits, errors = [], []
        for tables in (nearest, chosen):
            coded = encode(tables, y, z, 48)
            bits.append(sum(8 * len(streams.y) for streams in coded.streams))
            errors.append(float((y - coded.y_hat_BMhw).square().sum()))
            assert float((y - coded.y_hat_BMhw).abs().max()) < (0.51 if tables is nearest else 1.0)
    assert bits[1] < bits[0]
    assert errors[1] + weight * bits[1] < errors[0] + weight * bits[0]


def test_context_saves_bits_where_slices_resemble_each_other() -> None:
    torch.manual_seed(1)
    model = ContextEntropyModel(CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(150):
        size = torch.exp(1.5 * torch.randn(4, 1, 8, 8, generator=generator))
        y = size * torch.randn(4, 12, 8, 8, generator=generator)
        u_y, u_z = torch.rand(y.shape) - 0.5, torch.rand(4, 8, 2, 2) - 0.5
        bits = model(y, torch.full((4,), 4), u_y, u_z).bits_B.mean()
        optimizer.zero_grad()
        bits.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(bits.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_every_weight_has_a_gradient(model: ContextEntropyModel) -> None:
    y = _latents().requires_grad_()
    found = model(y, torch.tensor([1, 6]), torch.rand(y.shape) - 0.5, torch.rand(2, 8, 4, 6) - 0.5)
    (found.bits_B.sum() + found.y_hat_BMhw.square().sum()).backward()
    assert y.grad is not None and bool((y.grad != 0).any())
    trained = [p for name, p in model.named_parameters() if p.requires_grad and name != "scale_bias_QM"]
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in trained)
    grad = model.scale_bias_QM.grad
    assert grad is not None and (grad != 0).any(1).nonzero()[:, 0].tolist() == [1, 6]


def test_likelihoods_of_all_symbols_sum_to_one() -> None:
    v = torch.arange(-400, 401).double()
    for index in (0.0, 22.0, 40.0):
        assert float(logistic_likelihood(v + 0.3, torch.full_like(v, index)).sum()) == pytest.approx(1, abs=1e-6)


def test_a_configuration_without_slices_is_that_of_before_and_one_with_them_comes_back() -> None:
    before = CodecConfig("before", TransformConfig(), DenoiserConfig())
    named = before.to_dict()
    assert not {"slices", "context_channels", "lapped"} & set(named["transform"])
    assert "sees_decoder" not in named["denoiser"]
    config = dataclasses.replace(before, transform=CONFIG)
    for one in (before, config, tiny()):
        assert CodecConfig.from_dict(one.to_dict()) == one
    assert isinstance(CorrDiffModel(config).entropy, ContextEntropyModel)


@pytest.mark.parametrize(("slices", "channels"), [((2, 3), 8), ((12, 0), 8), ((12,), 0), ((), 8)])
def test_slices_that_do_not_fit_are_refused(slices: tuple[int, ...], channels: int) -> None:
    with pytest.raises(UsageError, match="slices"):
        TransformConfig(latent_channels=12, slices=slices, context_channels=channels)
