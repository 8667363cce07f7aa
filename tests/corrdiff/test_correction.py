from __future__ import annotations

import pytest
import torch

from corrdiff.correction import Grid, apply, dequantise, expand, split
from corrdiff.format.factor_coding import HIGH, LOW
from tests.support.estimates import three_pictures


def test_levels_cover_the_range_of_each_plane() -> None:
    levels = torch.tensor([0, 3, 15]).expand(1, 2, 1, 3)
    assert torch.allclose(dequantise(levels, 4)[0, :, 0], torch.tensor([[0.0, 0.2, 1.0], [-0.25, 0.0, 1.0]]))
    assert torch.allclose(dequantise(levels[:, :1], 4)[0, :, 0], torch.tensor([[0.0, 0.2, 1.0]]))


def test_expand_is_the_factor_itself_at_the_centre_of_a_cell() -> None:
    g = torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(0))
    pixels = expand(g, Grid(48, 64, 16), 48, 64)[0]
    # A centre lies between pixels; to its right and below factors are linear, so go back half a pixel from there.
    rows, columns = [8, 24], [8, 24, 40]
    near = pixels[:, columns] * 1.5 - pixels[:, [c + 1 for c in columns]] * 0.5
    centres = near[rows] * 1.5 - near[[r + 1 for r in rows]] * 0.5
    assert torch.allclose(centres, g[0, :2, :3], atol=1e-6)


def test_expand_is_constant_outside_the_outer_centres() -> None:
    g = torch.rand(1, 3, 4, generator=torch.Generator().manual_seed(0))
    pixels = expand(g, Grid(48, 64, 16), 48, 64)[0]
    assert torch.allclose(pixels[:8, :8], g[0, 0, 0].expand(8, 8))
    assert torch.allclose(pixels[40:, 56:], g[0, 2, 3].expand(8, 8))


def test_expand_is_linear_between_centres() -> None:
    pixels = expand(torch.tensor([[[0.0, 1.0]]]), Grid(16, 32, 16), 16, 32)[0, 0]
    assert torch.allclose(pixels[8:24], (torch.arange(16) + 0.5) / 16, atol=1e-6)


def test_expand_goes_on_evenly_over_padding() -> None:
    g = torch.tensor([[[0.25, 0.75]]])
    assert torch.allclose(expand(g, Grid(16, 32, 16), 64, 64)[0, :, 24:], torch.tensor(0.75))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 33), (300, 20)])
def test_a_grid_of_0_is_one_factor_for_the_whole_picture(height: int, width: int) -> None:
    grid = Grid(height, width, 0)
    assert (grid.rows, grid.columns) == (1, 1)
    assert torch.equal(expand(torch.tensor([[[0.4]]]), grid, height, width), torch.full((1, height, width), 0.4))


@pytest.mark.parametrize(("size", "cells"), [(1, 1), (128, 1), (129, 2), (256, 2), (257, 3)])
def test_a_grid_covers_the_picture(size: int, cells: int) -> None:
    grid = Grid(size, 2 * size, 128)
    assert grid.rows == cells
    assert grid.columns == -(-2 * size // 128)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize(("gamma", "which"), [(0.0, 1), (1.0, 2)])
def test_applying_0_or_1_gives_one_of_the_pictures(gamma: float, which: int, planes: int) -> None:
    pictures = three_pictures(16, 16)
    blended = apply(split(*pictures[1:], planes), torch.full((2, planes, 1, 1), gamma), Grid(16, 16, 0))
    assert torch.allclose(blended, pictures[which], atol=1e-6)


def test_one_plane_blends_the_two_pictures_as_the_paper_has_it() -> None:
    _, xhat0, d = three_pictures(16, 32)
    blended = apply(split(xhat0, d, 1), torch.full((2, 1, 1, 1), 0.3), Grid(16, 32, 0))
    assert torch.allclose(blended, (1 - 0.3) * xhat0 + 0.3 * d, atol=1e-6)


def test_the_parts_sum_to_the_difference_and_the_low_one_is_smooth() -> None:
    _, xhat0, d = three_pictures(64, 96)
    low, high = split(xhat0, d, 2).planes
    assert torch.allclose(low + high, d - xhat0, atol=1e-6)
    steps = [p.diff(dim=3).abs().mean() for p in (low, high)]
    assert steps[LOW] < 0.2 * steps[HIGH]


def test_a_grid_may_begin_inside_the_picture() -> None:
    g = torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = expand(g, Grid(32, 48, 16), 64, 64, top=10, left=4)[0]
    assert torch.allclose(whole[10:42, 4:52], expand(g, Grid(32, 48, 16), 32, 48)[0], atol=1e-6)
    assert torch.allclose(whole[:10, :4], g[0, 0, 0].expand(10, 4))
