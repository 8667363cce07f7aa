"""The lapped transform: orthonormal, seamless up to the border, ordered by variance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corrdiff.networks import lapped
from corrdiff.networks.lapped import LappedAnalysis, LappedSynthesis
from tests.support.drawn import make_picture

EVERY = 768


@pytest.fixture(scope="module")
def crops() -> torch.Tensor:
    pictures = [make_picture(64, 96, seed) for seed in range(8)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 127.5 - 1


def transforms(weight: torch.Tensor) -> tuple[LappedAnalysis, LappedSynthesis]:
    pair = LappedAnalysis(len(weight)), LappedSynthesis(len(weight))
    for layer in pair:
        layer.load_state_dict({"weight": weight})
    return pair


def test_the_synthesis_gives_the_picture_back_up_to_its_border(crops: torch.Tensor) -> None:
    analysis, synthesis = transforms(lapped.basis(crops, EVERY)[0])
    torch.testing.assert_close(synthesis(analysis(crops)), crops, atol=1e-5, rtol=0)


def test_functions_are_orthonormal_to_each_other_and_to_their_neighbours(crops: torch.Tensor) -> None:
    f = lapped.functions(lapped.basis(crops, EVERY)[0]).double()
    torch.testing.assert_close(f.flatten(1) @ f.flatten(1).T, torch.eye(EVERY, dtype=torch.float64), atol=1e-6, rtol=0)
    beside = f[..., 16:].flatten(1) @ f[..., :16].flatten(1).T
    below = f[:, :, 16:].flatten(1) @ f[:, :, :16].flatten(1).T
    assert max(float(beside.abs().max()), float(below.abs().max())) < 1e-6


def test_an_error_in_a_coefficient_is_as_large_in_the_picture(crops: torch.Tensor) -> None:
    analysis, synthesis = transforms(lapped.basis(crops, 64)[0])
    y = analysis(crops)
    error = torch.zeros_like(y)
    error[:, 5, 2, 3] = 1.0
    changed = synthesis(y + error) - synthesis(y)
    torch.testing.assert_close(changed.square().sum((1, 2, 3)), torch.ones(len(y)), atol=1e-4, rtol=0)


def test_components_come_in_the_order_of_their_variance(crops: torch.Tensor) -> None:
    weight, deviation = lapped.basis(crops, 96)
    y = transforms(weight)[0](crops)
    torch.testing.assert_close(y.transpose(0, 1).flatten(1).std(1), deviation, rtol=1e-3, atol=1e-5)
    assert bool((deviation.diff() <= 0).all())
    # Fewer components leave more of the picture out, and the first ones hold nearly all of it.
    left = [float((transforms(weight[:m])[1](y[:, :m]) - crops).square().mean()) for m in (8, 24, 96)]
    assert left[0] > left[1] > left[2]


def test_weights_and_functions_are_the_same_numbers() -> None:
    weight = torch.randn(5, EVERY, 2, 2)
    assert torch.equal(lapped.weights(lapped.functions(weight)), weight)
