from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from corrdiff.config import MAX_FACTOR_BITS
from corrdiff.correction import Grid, Parts, apply, dequantise, expand, split
from corrdiff.fitting import Fit
from corrdiff.format.factor_coding import HIGH, LOW, PLANES, decode_factors, encode_factors
from corrdiff.texture import texture_error

SIZES = [(64, 64, 32), (64, 96, 32), (48, 48, 16), (17, 33, 0), (20, 30, 128), (17, 33, 16), (1, 1, 128), (1, 7, 128)]
"""Height, width, cell."""


def _pictures(height: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """An original, a rough estimate of it and a smooth one; how good each is varies from place to place."""
    generator = torch.Generator().manual_seed(1000 * height + width)

    def noise(strength: float) -> Tensor:
        amplitude = torch.rand(batch, 1, height, width, generator=generator)
        return strength * amplitude * torch.randn(batch, 3, height, width, generator=generator)

    x_0 = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
    return x_0, x_0 + noise(0.4), 0.7 * x_0 + noise(0.4)


def _parts(xhat0: Tensor, d: Tensor) -> Parts:
    """As the codec makes them: of the padded picture, cropped."""
    height, width = d.shape[2:]
    pad = (0, -width % 64, 0, -height % 64)
    padded = split(*(torch.nn.functional.pad(x, pad, mode="replicate") for x in (xhat0, d)))
    return padded.crop(slice(height), slice(width))


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
    base = parts.xhat0_BCHW + held[:, None] * parts[2 - plane]
    gammas = dequantise(torch.arange(1 << bits)[:, None, None, None].expand(-1, PLANES, 1, 1), bits)[:, plane].flatten()
    return torch.stack(
        [_mean_of_each_cell((base + g * parts[1 + plane] - x_0).double().square().mean(1), grid) for g in gammas]
    )


@pytest.mark.parametrize(("height", "width", "cell"), SIZES)
@pytest.mark.parametrize("bits", [1, 4, 6])
def test_fidelity_1_picks_the_least_squared_error_of_each_cell(height: int, width: int, cell: int, bits: int) -> None:
    x_0, xhat0, d = _pictures(height, width)
    grid, parts = Grid(height, width, cell), _parts(xhat0, d)
    levels = Fit(x_0, d, grid, bits, fidelity=1.0)(parts)
    errors = _errors_along(x_0, parts, levels, HIGH, grid, bits)  # HIGH is fitted last, LOW being what it is then
    reached = errors.gather(0, levels[None, :, HIGH])[0]
    d_error = (d - x_0).square().mean((1, 2, 3))[:, None, None]
    assert (reached <= errors.amin(0) + 0.0031 * d_error).all()  # the price of a change of level


def test_each_plane_takes_what_its_part_needs() -> None:
    """D is right in the coarse part alone, the score network in the fine part alone."""
    x_0 = _pictures(64, 64, batch=1)[0]
    estimate = x_0 + 0.3  # wrong by a constant, which is coarse
    fine = torch.where((torch.arange(64)[:, None] + torch.arange(64)) % 2 == 0, 0.3, -0.3)
    levels = Fit(x_0, x_0 + fine, Grid(64, 64, 0), bits=4, fidelity=1.0)(_parts(estimate, x_0 + fine))
    assert levels.flatten().tolist() == [15, 3]  # factors 1 and 0


def test_fitted_levels_differ_from_cell_to_cell() -> None:
    x_0, xhat0, d = _pictures(64, 64, batch=1)
    d[:, :, :32] = x_0[:, :, :32]
    xhat0[:, :, 32:] = x_0[:, :, 32:]
    levels = Fit(x_0, d, Grid(64, 64, 32), bits=4, fidelity=1.0)(_parts(xhat0, d))
    assert (levels[0, :, 0] >= 13).all()
    assert (dequantise(levels, 4)[0, :, 1] <= 2 / 15).all()


@pytest.mark.parametrize("fidelity", [0.0, 0.5, 1.0])
def test_levels_are_kept_where_both_pictures_agree(fidelity: float) -> None:
    x_0, xhat0, _ = _pictures(64, 64)
    fit = Fit(x_0, xhat0, Grid(64, 64, 32), bits=4, fidelity=fidelity)
    assert (fit(_parts(xhat0, xhat0)) == 8).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (40, 72), (17, 33)])
def test_fidelity_0_has_no_worse_texture_than_fidelity_1(height: int, width: int) -> None:
    x_0, xhat0, d = _pictures(height, width, batch=4)
    grid, parts = Grid(height, width, 0), _parts(xhat0, d)

    def texture(fidelity: float) -> Tensor:
        gamma = dequantise(Fit(x_0, d, grid, 4, fidelity)(parts), 4)
        return texture_error(x_0, apply(parts, gamma, grid))

    assert (texture(0.0) <= texture(1.0) + 1e-5).all()


def test_fidelity_0_picks_the_least_texture_error() -> None:
    x_0, xhat0, d = _pictures(64, 64, batch=4)
    grid, parts = Grid(64, 64, 0), _parts(xhat0, d)
    levels = Fit(x_0, d, grid, bits=3, fidelity=0.0)(parts)
    errors = []
    for level in range(8):
        tried = levels.clone()
        tried[:, HIGH] = level
        errors.append(texture_error(x_0, apply(parts, dequantise(tried, 3), grid)))
    reached = torch.stack(errors).gather(0, levels[:, HIGH].reshape(1, -1))[0]
    assert (reached <= torch.stack(errors).amin(0) + 1e-5).all()


def test_a_perceptual_distance_takes_the_place_of_the_texture_error() -> None:
    x_0, xhat0, d = _pictures(64, 64)
    grid, parts = Grid(64, 64, 32), _parts(xhat0, d)

    def distance(x: Tensor, reference: Tensor) -> Tensor:
        assert torch.equal(reference, x_0)
        return 100 * (x - d).square().mean(1, keepdim=True)  # a judge that likes D

    assert (Fit(x_0, d, grid, 4, 0.0, distance)(parts) == 15).all()
    assert torch.equal(Fit(x_0, d, grid, 4, 1.0, distance)(parts), Fit(x_0, d, grid, 4, 1.0)(parts))


def test_texture_error_of_a_picture_with_itself_is_0() -> None:
    x_0 = _pictures(33, 47)[0]
    assert torch.equal(texture_error(x_0, x_0), torch.zeros(2))


def test_texture_error_sees_blur() -> None:
    x_0 = _pictures(64, 64)[0]
    blurred = torch.nn.functional.avg_pool2d(x_0, 3, stride=1, padding=1)
    assert (texture_error(x_0, blurred) > 0.5).all()


def test_levels_cover_the_range_of_each_plane() -> None:
    levels = torch.tensor([0, 3, 15]).expand(1, PLANES, 1, 3)
    assert torch.allclose(dequantise(levels, 4)[0, :, 0], torch.tensor([[0.0, 0.2, 1.0], [-0.25, 0.0, 1.0]]))


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


@pytest.mark.parametrize(("gamma", "which"), [(0.0, 1), (1.0, 2)])
def test_applying_0_or_1_gives_one_of_the_pictures(gamma: float, which: int) -> None:
    pictures = _pictures(16, 16)
    blended = apply(split(pictures[1], pictures[2]), torch.full((2, PLANES, 1, 1), gamma), Grid(16, 16, 0))
    assert torch.allclose(blended, pictures[which], atol=1e-6)


def test_the_parts_sum_to_the_difference_and_the_low_one_is_smooth() -> None:
    _, xhat0, d = _pictures(64, 96)
    parts = split(xhat0, d)
    assert torch.allclose(parts.low_BCHW + parts.high_BCHW, d - xhat0, atol=1e-6)
    steps = [p.diff(dim=3).abs().mean() for p in (parts.low_BCHW, parts.high_BCHW)]
    assert steps[LOW] < 0.2 * steps[HIGH]


def test_a_grid_may_begin_inside_the_picture() -> None:
    g = torch.rand(1, 2, 3, generator=torch.Generator().manual_seed(0))
    whole = expand(g, Grid(32, 48, 16), 64, 64, top=10, left=4)[0]
    assert torch.allclose(whole[10:42, 4:52], expand(g, Grid(32, 48, 16), 32, 48)[0], atol=1e-6)
    assert torch.allclose(whole[:10, :4], g[0, 0, 0].expand(10, 4))


@st.composite
def _levels(draw: st.DrawFn) -> tuple[npt.NDArray[np.uint8], int]:
    bits = draw(st.integers(1, MAX_FACTOR_BITS))
    shape = (draw(st.integers(1, 8)), PLANES, draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    highest = draw(st.integers(0, 2**bits - 1))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return rng.integers(0, highest + 1, shape).astype(np.uint8), bits


def test_a_level_is_kept_where_a_change_would_gain_next_to_nothing() -> None:
    x_0, xhat0, d = _pictures(64, 64)
    fit = Fit(x_0, d, Grid(64, 64, 16), bits=6, fidelity=1.0)
    first = fit(_parts(xhat0, d))
    nearly = xhat0 + 0.002 * torch.randn(xhat0.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fit(_parts(nearly, d)), first)
    assert not torch.equal(fit(_parts(2 * x_0 - xhat0 - 0.5, d)), first)


@given(drawn=_levels())
def test_coded_factors_are_decoded(drawn: tuple[npt.NDArray[np.uint8], int]) -> None:
    levels, bits = drawn
    decoded = decode_factors(encode_factors(levels, bits), levels.shape, bits)
    assert decoded.dtype == np.uint8
    assert np.array_equal(decoded, levels)


def test_steady_factors_cost_less_than_erratic_ones() -> None:
    rng = np.random.default_rng(0)
    steady = np.full((8, PLANES, 6, 6), 11, dtype=np.uint8)
    erratic = rng.integers(0, 16, steady.shape).astype(np.uint8)
    assert 16 * len(encode_factors(steady, 4)) < len(encode_factors(erratic, 4))


def test_planes_have_tables_of_their_own() -> None:
    levels = np.full((8, PLANES, 8, 8), 11, dtype=np.uint8)
    levels[:, HIGH] = np.random.default_rng(0).integers(0, 16, (8, 8, 8))
    assert len(encode_factors(levels, 4)) <= 8 * 8 * 8 * 4 / 8 + 16


def test_erratic_factors_cost_hardly_more_than_their_bits() -> None:
    levels = np.random.default_rng(0).integers(0, 16, (8, PLANES, 16, 16)).astype(np.uint8)
    assert len(encode_factors(levels, 4)) <= levels.size * 4 / 8 * 1.01 + 9


@given(data=st.binary(max_size=100), bits=st.integers(1, MAX_FACTOR_BITS))
def test_garbage_is_refused_or_gives_levels_in_range(data: bytes, bits: int) -> None:
    try:
        levels = decode_factors(data, (2, PLANES, 2, 3), bits)
    except ValueError:
        return
    assert levels.shape == (2, PLANES, 2, 3)
    assert int(levels.max()) < 2**bits


@pytest.mark.parametrize(
    "data", [b"", bytes([8]), bytes([0x80]), b"\xff" * 20, b"\x11" + b"\xff" * 30, b"\x01" + bytes(10_000_000)]
)
def test_bytes_that_cannot_be_factors_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"unknown frequency table|out of range|a stream"):
        decode_factors(data, (2, PLANES, 2, 3), 4)
