from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from corrdiff.config import T_MAX, T_START
from corrdiff.diffusion import ELSEWHERE_SHARE, add_noise, alpha_bar, ddim_step, sampling_times, training_time
from corrdiff.format.noise import format_noise


def test_alpha_bar_falls_from_one_to_zero() -> None:
    values = alpha_bar(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert (values[1:] < values[:-1]).all()
    assert float(values[0]) == pytest.approx(1, abs=1e-12)
    assert float(values[-1]) == pytest.approx(0, abs=1e-12)


def test_sampling_starts_in_nearly_pure_noise() -> None:
    assert float(alpha_bar(torch.tensor(T_MAX))) == pytest.approx(0.001, abs=5e-4)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 64])
def test_sampling_times_fall_evenly_from_the_start_to_zero(steps: int) -> None:
    times = sampling_times(steps, T_START)
    assert times[0] == T_START
    assert times[-1] == 0.0
    assert -np.diff(times) == pytest.approx([T_START / steps] * steps)


def test_times_to_train_at_are_uniform_where_decoding_asks_and_a_share_of_them_everywhere() -> None:
    t = training_time(torch.arange(100_000, dtype=torch.float64) / 100_000)
    assert 0 <= float(t.min()) < float(t.max()) < 1
    for low, high in ((0.0, 0.1), (0.1, T_START), (T_START, 0.7), (0.7, 1.0)):
        used = (1 - ELSEWHERE_SHARE) * (min(high, T_START) - min(low, T_START)) / T_START
        expected = used + ELSEWHERE_SHARE * (high - low)
        assert float(((low <= t) & (t < high)).double().mean()) == pytest.approx(expected, abs=1e-4)


def test_noise_is_mixed_in_at_the_stated_variances() -> None:
    x_0, eps, t = torch.tensor([[[[0.5]]]]), torch.tensor([[[[2.0]]]]), torch.tensor([0.4])
    a = float(alpha_bar(t))
    assert float(add_noise(x_0, eps, t)) == pytest.approx(0.5 * a**0.5 + 2.0 * (1 - a) ** 0.5)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_ddim_with_the_true_picture_stays_on_its_path_and_ends_in_it(steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.rand(1, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 - 1
    eps = format_noise(8, 8)[None].double()
    times = sampling_times(steps, T_MAX)
    x_t = add_noise(x_0, eps, torch.tensor([times[0]], dtype=torch.float64))
    for t, t_next in itertools.pairwise(times):
        x_t = ddim_step(x_t, x_0, t, t_next)
        assert torch.allclose(x_t, add_noise(x_0, eps, torch.tensor([t_next], dtype=torch.float64)), atol=1e-9)
    assert torch.allclose(x_t, x_0, atol=1e-9)
