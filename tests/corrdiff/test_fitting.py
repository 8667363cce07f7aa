from __future__ import annotations

import pytest
import torch
from torch import Tensor

from corrdiff.correction import Grid, Parts, apply, dequantise
from corrdiff.fitting import LEAST_SQUARES, Criterion, Fit
from corrdiff.format.factor_coding import HIGH
from corrdiff.texture import texture_error
from tests.support.estimates import parts_of, three_pictures

SIZES = [(64, 64, 32), (64, 96, 32), (48, 48, 16), (17, 33, 0), (20, 30, 128), (17, 33, 16), (1, 1, 128), (1, 7, 128)]
"""Height, width, cell."""


def _mean_of_each_cell(x_BHW: Tensor, grid: Grid) -> Tensor:
    """Mean over the pixels of each cell, [B, R, C]."""
    side = grid.cell or max(grid.height, grid.width)
    rows = [x_BHW[:, r * side : (r + 1) * side] for r in range(grid.rows)]
    return torch.stack(
        [
            torch.stack([row[:, :, c * side : (c + 1) * side].mean((1, 2)) for c in range(grid.columns)], dim=1)
            for row in rows
        ],
        dim=1,
    )


def _errors_along(x_0: Tensor, parts: Parts, levels: Tensor, plane: int, grid: Grid, bits: int) -> Tensor:
    """Squared error of each cell at each level of one plane, the other as fitted: [L, B, R, C], by blending."""
    held = dequantise(levels, bits)[:, 1 - plane]
    side = grid.cell or max(grid.height, grid.width)
    held = held.repeat_interleave(side, 1)[:, : grid.height].repeat_interleave(side, 2)[:, :, : grid.width]
    base = parts.xhat0_BCHW + held[:, None] * parts.planes[1 - plane]
    gammas = dequantise(torch.arange(1 << bits)[:, None, None, None].expand(-1, 2, 1, 1), bits)[:, plane].flatten()
    return torch.stack(
        [_mean_of_each_cell((base + g * parts.planes[plane] - x_0).double().square().mean(1), grid) for g in gammas]
    )


@pytest.mark.parametrize(("height", "width", "cell"), SIZES)
@pytest.mark.parametrize("bits", [1, 4, 6])
def test_fidelity_1_picks_the_least_squared_error_of_each_cell(height: int, width: int, cell: int, bits: int) -> None:
    x_0, xhat0, d = three_pictures(height, width)
    grid, parts = Grid(height, width, cell), parts_of(xhat0, d)
    levels = Fit(x_0, d, grid, bits, 2, Criterion(1.0))(parts)
    errors = _errors_along(x_0, parts, levels, HIGH, grid, bits)  # HIGH is fitted last, LOW being what it is then
    reached = errors.gather(0, levels[None, :, HIGH])[0]
    d_error = (d - x_0).square().mean((1, 2, 3))[:, None, None]
    assert (reached <= errors.amin(0) + 0.0031 * d_error).all()  # the price of a change of level


def test_each_plane_takes_what_its_part_needs() -> None:
    """D is right in the coarse part alone, the score network in the fine part alone."""
    x_0 = three_pictures(64, 64, batch=1)[0]
    estimate = x_0 + 0.3  # wrong by a constant, which is coarse
    fine = torch.where((torch.arange(64)[:, None] + torch.arange(64)) % 2 == 0, 0.3, -0.3)
    levels = Fit(x_0, x_0 + fine, Grid(64, 64, 0), 4, 2, Criterion(1.0))(parts_of(estimate, x_0 + fine))
    assert levels.flatten().tolist() == [15, 3]  # factors 1 and 0


def test_fitted_levels_differ_from_cell_to_cell() -> None:
    x_0, xhat0, d = three_pictures(64, 64, batch=1)
    d[:, :, :32] = x_0[:, :, :32]
    xhat0[:, :, 32:] = x_0[:, :, 32:]
    levels = Fit(x_0, d, Grid(64, 64, 32), 4, 2, Criterion(1.0))(parts_of(xhat0, d))
    assert (levels[0, :, 0] >= 13).all()
    assert (dequantise(levels, 4)[0, :, 1] <= 2 / 15).all()


@pytest.mark.parametrize("fidelity", [0.0, 0.5, 1.0])
def test_levels_are_kept_where_both_pictures_agree(fidelity: float) -> None:
    x_0, xhat0, _ = three_pictures(64, 64)
    fit = Fit(x_0, xhat0, Grid(64, 64, 32), 4, 2, Criterion(fidelity))
    assert (fit(parts_of(xhat0, xhat0)) == 8).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 72), (17, 33)])
def test_fidelity_0_has_no_worse_texture_than_fidelity_1(height: int, width: int) -> None:
    x_0, xhat0, d = three_pictures(height, width, batch=4)
    grid, parts = Grid(height, width, 0), parts_of(xhat0, d)

    def texture(fidelity: float) -> Tensor:
        gamma = dequantise(Fit(x_0, d, grid, 4, 2, Criterion(fidelity))(parts), 4)
        return texture_error(x_0, apply(parts, gamma, grid))

    assert (texture(0.0) <= texture(1.0) + 1e-5).all()


def test_fidelity_0_picks_the_least_texture_error() -> None:
    x_0, xhat0, d = three_pictures(64, 64, batch=4)
    grid, parts = Grid(64, 64, 0), parts_of(xhat0, d)
    levels = Fit(x_0, d, grid, 3, 2, Criterion(0.0))(parts)
    errors = []
    for level in range(8):
        tried = levels.clone()
        tried[:, HIGH] = level
        errors.append(texture_error(x_0, apply(parts, dequantise(tried, 3), grid)))
    reached = torch.stack(errors).gather(0, levels[:, HIGH].reshape(1, -1))[0]
    assert (reached <= torch.stack(errors).amin(0) + 1e-5).all()


def test_a_perceptual_distance_takes_the_place_of_the_texture_error() -> None:
    x_0, xhat0, d = three_pictures(64, 64)
    grid, parts = Grid(64, 64, 32), parts_of(xhat0, d)

    def distance(x: Tensor, reference: Tensor) -> Tensor:
        assert torch.equal(reference, x_0)
        return 100 * (x - d).square().mean(1, keepdim=True)  # a judge that likes D

    def levels(criterion: Criterion) -> Tensor:
        return Fit(x_0, d, grid, 4, 2, criterion)(parts)

    assert (levels(Criterion(0.0, distance)) == 15).all()
    assert torch.equal(levels(Criterion(1.0, distance)), levels(Criterion(1.0)))


def test_a_level_is_kept_where_a_change_would_gain_next_to_nothing() -> None:
    x_0, xhat0, d = three_pictures(64, 64)
    fit = Fit(x_0, d, Grid(64, 64, 16), 6, 2, Criterion(1.0))
    first = fit(parts_of(xhat0, d))
    nearly = xhat0 + 0.002 * torch.randn(xhat0.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fit(parts_of(nearly, d)), first)
    assert not torch.equal(fit(parts_of(2 * x_0 - xhat0 - 0.5, d)), first)


@pytest.mark.parametrize(("height", "width", "cell"), SIZES)
@pytest.mark.parametrize("bits", [1, 4, 6])
def test_least_squares_of_one_plane_is_the_level_next_to_the_closed_form(
    height: int, width: int, cell: int, bits: int
) -> None:
    x_0, xhat0, d = three_pictures(height, width)
    grid = Grid(height, width, cell)
    levels = Fit(x_0, d, grid, bits, 1, LEAST_SQUARES)(parts_of(xhat0, d, 1))
    difference = (d - xhat0).double()
    products = (_mean_of_each_cell((a * difference).mean(1), grid) for a in (x_0 - xhat0, difference))
    numerator, denominator = products
    best = (numerator / denominator).clamp(0, 1) * (2**bits - 1)
    assert ((levels[:, 0] - best).abs() <= 0.5 + 1e-3).all()


def test_least_squares_takes_nothing_of_a_picture_that_is_the_estimate() -> None:
    x_0, xhat0, _ = three_pictures(64, 64)
    fit = Fit(x_0, xhat0, Grid(64, 64, 0), 4, 1, LEAST_SQUARES)
    assert (fit(parts_of(xhat0, xhat0, 1)) == 0).all()
