"""How the encoder finds the factors of the correction.

Shapes: x_BCHW pictures in [-1, 1]; P planes of factors, one or two (low and high); R rows and C columns of factor
cells; L = 2**bits levels, whole numbers 0..L - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from corrdiff.config import GRID_UNIT
from corrdiff.correction import Grid, Parts, apply, dequantise
from corrdiff.format.factor_coding import LOW
from corrdiff.perceptual import PerceptualMap
from corrdiff.texture import BANDS, BLOCK, VARIANCE_FLOOR, bands, block_mean, pool

assert GRID_UNIT % (BLOCK << (BANDS - 1)) == 0, "a cell's side is a multiple of the coarsest band's block"
_ERROR_FLOOR = 1e-6
_CHANGE_COST = 0.003
"""What a change of level costs: it takes 40% off the factors' bytes and nothing that shows off the picture
(benchmarks/factors.py)."""


class Criterion(NamedTuple):
    """What factors are chosen by."""

    fidelity: float
    perceptual: PerceptualMap | None = None
    """Takes the place of the texture error where it is given."""
    change_cost: float = _CHANGE_COST


LEAST_SQUARES = Criterion(fidelity=1.0, change_cost=0.0)
"""With one plane: the level next to <x_0 - xhat0, D - xhat0> / |D - xhat0|^2 in each cell, 0 where D is xhat0."""


class Fit:
    """Finds the levels of a batch of pictures (or tile cores), step by step.

    The criterion of a cell is `fidelity * squared error / D's + (1 - fidelity) * texture error`, and a little for a
    level that differs from the step before. D's squared error is that of the whole picture: so texture goes where it
    costs the least PSNR. Texture error is the mean absolute log ratio of local band energies to the original's. Errors
    and energies are quadratics in a factor, so all levels of a plane cost one pass over the picture. Two planes take
    turns, low first, each with the other held; they start from the step before, in the first from the middle level.
    """

    def __init__(
        self,
        x_0_BCHW: Tensor,
        d_BCHW: Tensor,
        grid: Grid,
        bits: int,
        planes: int,
        criterion: Criterion,
    ) -> None:
        self._x_0_BCHW, self._grid, self._planes, self._criterion = x_0_BCHW, grid, planes, criterion
        error_BCHW = d_BCHW - x_0_BCHW
        self._error = _Energy(error_BCHW, lambda v: _pixel_mean(v, grid).mean(1))
        d_error_B = error_BCHW.square().mean((1, 2, 3)) + _ERROR_FLOOR
        self._error_weight_B11 = criterion.fidelity / d_error_B[:, None, None]
        self._texture = [_Energy(band, block_mean) for band in bands(d_BCHW)]
        self._original = [torch.log(block_mean(band * band) + VARIANCE_FLOOR) for band in bands(x_0_BCHW)]
        levels = 1 << bits
        self._bits = bits
        self._level_L111 = torch.arange(levels, device=x_0_BCHW.device)[:, None, None, None]
        self._gamma_LP11 = dequantise(self._level_L111.expand(-1, planes, 1, 1), bits)
        shape = (len(x_0_BCHW), planes, grid.rows, grid.columns)
        self._levels_BPRC = torch.full(shape, levels // 2, device=x_0_BCHW.device)

    def __call__(self, parts: Parts) -> Tensor:
        """Find the next step's levels, [B, P, R, C]."""
        fidelity, perceptual, change_cost = self._criterion
        low_BCHW = parts.planes[LOW]
        error = self._error.products(parts.xhat0_BCHW - self._x_0_BCHW, low_BCHW)
        texture: list[_Products] = []
        if fidelity < 1 and perceptual is None:
            of_bands = zip(self._texture, bands(parts.xhat0_BCHW), bands(low_BCHW), strict=True)
            texture = [energy.products(xhat0, low) for energy, xhat0, low in of_bands]
        for plane in range(self._planes):
            cost = self._error_weight_B11 * self._along(error, plane, None)
            for i, products in enumerate(texture):
                ratio = (torch.log(self._along(products, plane, i) + VARIANCE_FLOOR) - self._original[i]).abs_()
                cost += (1 - fidelity) / BANDS * _cell_mean(ratio, self._grid, 1 << i)
            if fidelity < 1 and perceptual is not None:
                cost += (1 - fidelity) * self._perceptual_cost(perceptual, parts, plane)
            cost += change_cost * (self._level_L111 != self._levels_BPRC[:, plane])
            self._levels_BPRC = self._levels_BPRC.clone()
            self._levels_BPRC[:, plane] = cost.argmin(0)
        return self._levels_BPRC

    def _along(self, products: _Products, plane: int, band: int | None) -> Tensor:
        """Compute the combination's energy at each level of one plane, the other held if there is one: [L, B, ...]."""
        g_BPRC = dequantise(self._levels_BPRC, self._bits)
        h = torch.zeros_like(g_BPRC[:, 0])
        for other in range(self._planes):
            h = h if other == plane else g_BPRC[:, other]
        if band is not None:
            h = _cells_to_blocks(h, self._grid, products.aa.shape[-2:], 1 << band)
        aa, al, ah, ll, lh, hh = products
        moved, held = ((al, ll), (ah, hh)) if plane == LOW else ((ah, hh), (al, ll))
        base = aa + h * (2 * held[0] + h * held[1])
        g = self._gamma_LP11[:, plane, None]
        return (base + g * (2 * (moved[0] + h * lh) + g * moved[1])).clamp_(min=0)

    def _perceptual_cost(self, perceptual: PerceptualMap, parts: Parts, plane: int) -> Tensor:
        """Estimate the perceptual distance at each level, [L, B, R, C], by a parabola through three of them."""
        distances = []
        for gamma in (0.0, 0.5, 1.0):
            g_BPRC = dequantise(self._levels_BPRC, self._bits)
            g_BPRC[:, plane] = gamma
            distance = perceptual(apply(parts, g_BPRC, self._grid), self._x_0_BCHW)
            distances.append(_pixel_mean(distance, self._grid)[:, 0])
        at_0, at_half, at_1 = distances
        g = self._gamma_LP11[:, plane, None]
        return at_0 + g * (4 * at_half - 3 * at_0 - at_1) + g * g * 2 * (at_0 + at_1 - 2 * at_half)


class _Products(NamedTuple):
    """Local inner products of an estimate (or its error) a, the low part l and the high part h."""

    aa: Tensor
    al: Tensor
    ah: Tensor
    ll: Tensor
    lh: Tensor
    hh: Tensor


class _Energy:
    """Local inner products where a + l + h is the same in every step, so that h need not be looked at."""

    def __init__(self, total: Tensor, mean: Callable[[Tensor], Tensor]) -> None:
        self._total, self._mean = total, mean
        self._tt = mean(total * total)

    def products(self, a: Tensor, low: Tensor) -> _Products:
        aa, al, ll = self._mean(a * a), self._mean(a * low), self._mean(low * low)
        at, lt = self._mean(a * self._total), self._mean(low * self._total)
        ah, lh = at - aa - al, lt - al - ll
        return _Products(aa, al, ah, ll, lh, self._tt - at - lt - ah - lh)


def _pixel_mean(x_BCHW: Tensor, grid: Grid) -> Tensor:
    """Average over the pixels of each cell, [B, C, R, C']."""
    return x_BCHW.mean((-2, -1), keepdim=True) if grid.cell == 0 else pool(x_BCHW, grid.cell)


def _cell_mean(blocks: Tensor, grid: Grid, scale: int) -> Tensor:
    """Average means over blocks (of a band at 1/scale) to means over cells, on the last two axes."""
    if grid.cell == 0:
        return blocks.mean((-2, -1), keepdim=True)
    return pool(blocks, grid.cell // (BLOCK * scale))


def _cells_to_blocks(g_BRC: Tensor, grid: Grid, size: torch.Size, scale: int) -> Tensor:
    """Give each block (of a band at 1/scale) the value of the cell in which it lies, [B, *size]."""
    if grid.cell == 0:
        return g_BRC.expand(-1, *size)
    side = grid.cell // (BLOCK * scale)
    return g_BRC.repeat_interleave(side, 1)[:, : size[0]].repeat_interleave(side, 2)[:, :, : size[1]]
