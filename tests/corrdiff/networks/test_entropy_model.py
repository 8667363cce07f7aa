from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corrdiff.format.latent_models import SCALE_LEVELS
from corrdiff.networks.entropy_model import SCALE_MAX, SCALE_MIN, EntropyModel, round_straight_through, scale_of_index

Q = torch.tensor([4])
"""The quality level, which this model does not ask for."""


def _latent(channels: int, rows: int, columns: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(channels, rows, columns, generator=torch.Generator().manual_seed(8))


def test_integers_follow_the_network_that_was_trained(small: EntropyModel) -> None:
    z_hat = torch.randint(-4, 5, (1, 8, 6, 6), generator=torch.Generator().manual_seed(7)).float()
    with torch.no_grad():
        m, index = small.hyper_synthesis(z_hat)
    m_integer, index_integer = small.freeze().model.mean_and_index(z_hat)
    assert float((m_integer - m).abs().max()) < 0.05
    assert float((index_integer - index.clamp(0, SCALE_LEVELS - 1)).abs().max()) < 1


def test_scales_span_the_table_and_are_clamped_to_it() -> None:
    scales = scale_of_index(torch.tensor([-5.0, 0.0, SCALE_LEVELS - 1.0, 100.0]))
    assert scales.tolist() == pytest.approx([SCALE_MIN, SCALE_MIN, SCALE_MAX, SCALE_MAX], rel=1e-5)


def test_rate_has_a_gradient_for_every_part_of_the_entropy_model(small: EntropyModel) -> None:
    y = _latent(12, 8, 8)[None].requires_grad_()
    generator = torch.Generator().manual_seed(0)
    u_y, u_z = torch.rand(1, 12, 8, 8, generator=generator) - 0.5, torch.rand(1, 8, 2, 2, generator=generator) - 0.5
    trained = {name: p for name, p in small.named_parameters() if p.requires_grad}
    bits = small(y, Q, u_y, u_z).bits_B
    grads = torch.autograd.grad(bits.sum(), [y, *trained.values()])
    silent = [
        name for name, g in zip(["y", *trained], grads, strict=True) if not (g.isfinite().all() and g.abs().max() > 0)
    ]
    assert silent == []


def test_a_picture_has_its_own_rate_in_a_batch(small: EntropyModel) -> None:
    y = torch.stack([_latent(12, 8, 8, spread=s) for s in (0.5, 2.0, 4.0)])
    with torch.no_grad():
        together = small(y, Q, None, None).bits_B
        alone = torch.cat([small(one[None], Q, None, None).bits_B for one in y])
    assert torch.allclose(together, alone, rtol=1e-4)
    assert together.tolist() == sorted(together.tolist())


def test_rounding_passes_gradients_straight_through() -> None:
    x = torch.tensor([-1.6, 0.2, 3.5], requires_grad=True)
    rounded = round_straight_through(x)
    rounded.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert rounded.tolist() == [-2.0, 0.0, 4.0]
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 2.0, 3.0]


def test_the_rounded_latent_has_the_gradient_of_the_latent(small: EntropyModel) -> None:
    y = _latent(12, 8, 8)[None].requires_grad_()
    (gradient,) = torch.autograd.grad(small(y, Q, None, None).y_hat_BMhw.sum(), y)
    assert torch.allclose(gradient, torch.ones_like(gradient), atol=1e-4)


def test_the_training_latent_is_the_one_that_is_coded(small: EntropyModel) -> None:
    y = _latent(12, 8, 8)[None]
    with torch.no_grad():
        trained = small(y, Q, None, None).y_hat_BMhw[0]
        coded = small.freeze().quantise(y, small.hyper_analysis(y), torch.tensor([64]))[1][0]
    # The integer m differs by less than 0.05, which now and then tips a rounding.
    assert float(((trained - coded).abs() < 0.05).float().mean()) > 0.95
