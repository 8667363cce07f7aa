"""The correction of CorrDiff: pull the score network's estimate towards the privileged decoder's picture.

    xtilde0_t = xhat0_t + gamma_low_t * low(D - xhat0_t) + gamma_high_t * high(D - xhat0_t)

With both factors equal this is (1 - gamma_t) * xhat0_t + gamma_t * D. `low` is what is left of the difference at a
quarter of the resolution, `high` the rest: in the coarse part D is nearer to the original at no loss of texture, in the
fine part the two compete. Each factor has a value for each cell of a grid, interpolated bilinearly between centres. The
encoder finds the factors, quantises them and codes them; the decoder reads them. The idea is from arXiv 2404.04916; the
two parts, the grid, the criterion and the coding here are this project's own.

Shapes: x_BCHW pictures in [-1, 1]; P = 2 planes of factors, low and high; g_BPRC factors on a grid of R rows and C
columns of cells; S steps; L = 2**bits levels, whole numbers 0..L - 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff.config import GRID_UNIT
from corrdiff.format.range_coder import RangeTables

PLANES = 2
LOW, HIGH = 0, 1
LEAST_FACTOR = (0.0, -0.25)
"""Factors of a plane go from this to 1. Below 0 the fine part is drawn away from D: texture that the score network
leaves too weak is raised to the original's strength."""

COARSE = 4
"""The low part is the difference averaged over blocks of 4x4 pixels and interpolated bilinearly."""

BLOCK = 8
"""Texture is compared on blocks of 8x8 samples of a band; a cell's side is a multiple of the coarsest band's block."""

_BANDS = 2
assert GRID_UNIT % (BLOCK << (_BANDS - 1)) == 0
_VARIANCE_FLOOR = (2 / 255) ** 2
"""One grey level: texture below it is not seen, and its logarithm must not weigh."""
_ERROR_FLOOR = 1e-6
_CHANGE_COST = 0.003
"""Takes 40% off the factors' bytes and nothing that shows off the picture (benchmarks/factors.py)."""

# Ratio of the frequencies of neighbouring residuals, in eighths, for each of the coder's tables.
_DECAY_EIGHTHS = (0, 1, 2, 3, 4, 5, 6, 8)

Perceptual = Callable[[Tensor, Tensor], Tensor]
"""Two pictures [B, 3, H, W] in [-1, 1] -> a map of their distance, [B, 1, H, W]."""


class Grid(NamedTuple):
    """How factor cells lie over a picture or a tile's core."""

    height: int
    width: int
    cell: int
    """Side of a cell in pixels; 0 is one cell for all."""

    @property
    def rows(self) -> int:
        return -(-self.height // self.cell) if self.cell else 1

    @property
    def columns(self) -> int:
        return -(-self.width // self.cell) if self.cell else 1


class Parts(NamedTuple):
    """The score network's estimate, and its difference to D in two parts, each [B, 3, H, W]."""

    xhat0_BCHW: Tensor
    low_BCHW: Tensor
    high_BCHW: Tensor

    def crop(self, rows: slice, columns: slice) -> Parts:
        return Parts(*(p[:, :, rows, columns].contiguous() for p in self))


def split(xhat0_BCHW: Tensor, d_BCHW: Tensor) -> Parts:
    """The parts that the factors weigh; sides must be multiples of COARSE."""
    difference = d_BCHW - xhat0_BCHW
    coarse = F.avg_pool2d(difference, COARSE)
    low = F.interpolate(coarse, scale_factor=COARSE, mode="bilinear", align_corners=False)
    return Parts(xhat0_BCHW, low, difference.sub_(low))


def dequantise(levels_BPRC: Tensor, bits: int) -> Tensor:
    """Levels -> factors, [B, P, R, C]."""
    least_P11 = torch.tensor(LEAST_FACTOR, device=levels_BPRC.device)[:, None, None]
    return least_P11 + (1 - least_P11) * levels_BPRC.float() / ((1 << bits) - 1)


def apply(parts: Parts, g_BPRC: Tensor, grid: Grid, top: int = 0, left: int = 0) -> Tensor:
    """The corrected estimate. (top, left) is where the grid's first pixel lies in the parts."""
    size = parts.xhat0_BCHW.shape[2:]
    g_BPHW = expand(g_BPRC, grid, size[0], size[1], top, left)
    corrected = torch.addcmul(parts.xhat0_BCHW, g_BPHW[:, LOW, None], parts.low_BCHW)
    return corrected.addcmul_(g_BPHW[:, HIGH, None], parts.high_BCHW)


def expand(g: Tensor, grid: Grid, height: int, width: int, top: int = 0, left: int = 0) -> Tensor:
    """Factors on the grid [..., R, C] -> a factor for each pixel [..., height, width], bilinear between cell centres.

    Beyond the outermost centres, and so outside the grid, the nearest value goes on.
    """
    rows = _interpolation(height, grid.rows, grid.cell, top, g.device)
    columns = _interpolation(width, grid.columns, grid.cell, left, g.device)
    return rows @ g @ columns.T


@functools.lru_cache(maxsize=64)
def _interpolation(size: int, cells: int, cell: int, start: int, device: torch.device) -> Tensor:
    """[size, cells] weights of the cells at each pixel along one axis."""
    if cells == 1:
        return torch.ones(size, 1, device=device)
    position = ((torch.arange(size) - start + 0.5) / cell - 0.5).clamp(0, cells - 1)
    lower = position.floor().clamp(max=cells - 2).long()
    weight = torch.zeros(size, cells)
    weight.scatter_(1, lower[:, None], (1 - (position - lower))[:, None])
    weight.scatter_(1, lower[:, None] + 1, (position - lower)[:, None])
    return weight.to(device)


class Fit:
    """Finds the levels of a batch of pictures (or tile cores), step by step.

    The criterion of a cell is `fidelity * squared error / D's + (1 - fidelity) * texture error`, and a little for a
    level that differs from the step before. D's squared error is that of the whole picture: so texture goes where it
    costs the least PSNR. Texture error is the mean absolute log ratio of local band energies to the original's. Errors
    and energies are quadratics in a factor, so all levels of a plane cost one pass over the picture. The planes take
    turns, low first, each with the other held; they start from the step before, in the first from the middle level.
    """

    def __init__(
        self,
        x_0_BCHW: Tensor,
        d_BCHW: Tensor,
        grid: Grid,
        bits: int,
        fidelity: float,
        perceptual: Perceptual | None = None,
    ) -> None:
        """`perceptual`, where it is given, takes the place of the texture error."""
        self._x_0_BCHW, self._grid, self._fidelity, self._perceptual = x_0_BCHW, grid, fidelity, perceptual
        error_BCHW = d_BCHW - x_0_BCHW
        self._error = _Energy(error_BCHW, lambda v: _pixel_mean(v, grid).mean(1))
        self._error_weight_B11 = fidelity / (error_BCHW.square().mean((1, 2, 3)) + _ERROR_FLOOR)[:, None, None]
        self._texture = [_Energy(band, _block_mean) for band in _bands(d_BCHW)]
        self._original = [torch.log(_block_mean(band * band) + _VARIANCE_FLOOR) for band in _bands(x_0_BCHW)]
        levels = 1 << bits
        self._bits = bits
        self._level_L111 = torch.arange(levels, device=x_0_BCHW.device)[:, None, None, None]
        self._gamma_LP11 = dequantise(self._level_L111.expand(-1, PLANES, 1, 1), bits)
        shape = (len(x_0_BCHW), PLANES, grid.rows, grid.columns)
        self._levels_BPRC = torch.full(shape, levels // 2, device=x_0_BCHW.device)

    def __call__(self, parts: Parts) -> Tensor:
        """The next step's levels, [B, P, R, C]."""
        error = self._error.products(parts.xhat0_BCHW - self._x_0_BCHW, parts.low_BCHW)
        texture: list[_Products] = []
        if self._fidelity < 1 and self._perceptual is None:
            bands = zip(self._texture, _bands(parts.xhat0_BCHW), _bands(parts.low_BCHW), strict=True)
            texture = [energy.products(xhat0, low) for energy, xhat0, low in bands]
        for plane in range(PLANES):
            cost = self._error_weight_B11 * self._along(error, plane, None)
            for i, products in enumerate(texture):
                ratio = (torch.log(self._along(products, plane, i) + _VARIANCE_FLOOR) - self._original[i]).abs_()
                cost += (1 - self._fidelity) / _BANDS * _cell_mean(ratio, self._grid, 1 << i)
            if self._fidelity < 1 and self._perceptual is not None:
                cost += (1 - self._fidelity) * self._perceptual_cost(parts, plane)
            cost += _CHANGE_COST * (self._level_L111 != self._levels_BPRC[:, plane])
            self._levels_BPRC = self._levels_BPRC.clone()
            self._levels_BPRC[:, plane] = cost.argmin(0)
        return self._levels_BPRC

    def _along(self, products: _Products, plane: int, band: int | None) -> Tensor:
        """Energy of the combination at each level of one plane, the other plane held: [L, B, ...]."""
        h = dequantise(self._levels_BPRC, self._bits)[:, 1 - plane]
        if band is not None:
            h = _cells_to_blocks(h, self._grid, products.aa.shape[-2:], 1 << band)
        aa, al, ah, ll, lh, hh = products
        moved, held = ((al, ll), (ah, hh)) if plane == LOW else ((ah, hh), (al, ll))
        base = aa + h * (2 * held[0] + h * held[1])
        g = self._gamma_LP11[:, plane, None]
        return (base + g * (2 * (moved[0] + h * lh) + g * moved[1])).clamp_(min=0)

    def _perceptual_cost(self, parts: Parts, plane: int) -> Tensor:
        """The perceptual distance at each level, [L, B, R, C]: a parabola through the distances at three of them."""
        assert self._perceptual is not None
        distances = []
        for gamma in (0.0, 0.5, 1.0):
            g_BPRC = dequantise(self._levels_BPRC, self._bits)
            g_BPRC[:, plane] = gamma
            distance = self._perceptual(apply(parts, g_BPRC, self._grid), self._x_0_BCHW)
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


def texture_error(x_0_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Mean absolute log ratio of local band energies to the original's, [B]; 0 is the same texture everywhere."""
    parts = [
        torch.log((_block_mean(b * b) + _VARIANCE_FLOOR) / (_block_mean(a * a) + _VARIANCE_FLOOR)).abs().mean((-2, -1))
        for a, b in zip(_bands(x_0_BCHW), _bands(x_BCHW), strict=True)
    ]
    return torch.stack(parts).mean(0)


def high_frequency_energy(x_BCHW: Tensor) -> Tensor:
    """Mean square of the finest band, [B]."""
    return _bands(x_BCHW)[0].square().mean((-2, -1))


def _bands(x_BCHW: Tensor) -> list[Tensor]:
    """Laplacian pyramid of the channel mean, finest band first: [B, H, W], then half the size."""
    low = x_BCHW.float().mean(1)
    bands: list[Tensor] = []
    for i in range(_BANDS):
        if i > 0:
            low = _pool(low, 2)
        smooth = _smooth(_smooth(low, 1), 2)
        bands.append(low - smooth)
        low = smooth
    return bands


def _smooth(x_BHW: Tensor, axis: int) -> Tensor:
    """The kernel (1, 2, 1) / 4 along an axis, edge values repeated."""
    size = x_BHW.shape[axis]
    before = torch.cat([x_BHW.narrow(axis, 0, 1), x_BHW.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([x_BHW.narrow(axis, 1, size - 1), x_BHW.narrow(axis, size - 1, 1)], axis)
    return before.add_(after).mul_(0.25).add_(x_BHW, alpha=0.5)


def _block_mean(x_BHW: Tensor) -> Tensor:
    return _pool(x_BHW, BLOCK)


def _pixel_mean(x_BCHW: Tensor, grid: Grid) -> Tensor:
    """Means over the pixels of each cell, [B, C, R, C']."""
    return x_BCHW.mean((-2, -1), keepdim=True) if grid.cell == 0 else _pool(x_BCHW, grid.cell)


def _cell_mean(blocks: Tensor, grid: Grid, scale: int) -> Tensor:
    """Means over blocks (of a band at 1/scale) -> means over cells, last two axes."""
    if grid.cell == 0:
        return blocks.mean((-2, -1), keepdim=True)
    return _pool(blocks, grid.cell // (BLOCK * scale))


def _pool(x_BCHW: Tensor, side: int) -> Tensor:
    """Means over squares; those at the lower and right edge may be cut."""
    height, width = x_BCHW.shape[-2:]
    if side < 32 or height % side or width % side:
        return F.avg_pool2d(x_BCHW, side, ceil_mode=True)
    squares = x_BCHW.reshape(*x_BCHW.shape[:-2], height // side, side, width // side, side)
    return squares.mean((-3, -1))  # the same, several times faster for large squares


def _cells_to_blocks(g_BRC: Tensor, grid: Grid, size: torch.Size, scale: int) -> Tensor:
    """The value of the cell in which each block (of a band at 1/scale) lies, [B, *size]."""
    if grid.cell == 0:
        return g_BRC.expand(-1, *size)
    side = grid.cell // (BLOCK * scale)
    return g_BRC.repeat_interleave(side, 1)[:, : size[0]].repeat_interleave(side, 2)[:, :, : size[1]]


def encode_factors(levels_SPRC: npt.NDArray[np.uint8], bits: int) -> bytes:
    """Levels of all steps -> bytes: which frequency table codes each plane best, then rANS.

    A level is coded as its difference (modulo 2**bits) from the same cell one step earlier; in the first step from its
    left neighbour, in the first column from the one above, and in the first cell from 2**(bits - 1).
    """
    residuals = _residuals(levels_SPRC, bits)
    lengths_TL, tables = _factor_tables(bits)
    chosen = [
        int((lengths_TL @ np.bincount(residuals[:, p].ravel(), minlength=1 << bits)).argmin()) for p in range(PLANES)
    ]
    first = chosen[LOW] | chosen[HIGH] << 4
    return bytes([first]) + tables.encode(residuals.ravel(), _table_index(residuals.shape, chosen))


def decode_factors(data: bytes, shape_SPRC: tuple[int, int, int, int], bits: int) -> npt.NDArray[np.uint8]:
    """Inverse of `encode_factors`. Raises `ValueError` where the bytes are no factors."""
    chosen = [data[0] & 15, data[0] >> 4] if data else [len(_DECAY_EIGHTHS)]
    if max(chosen) >= len(_DECAY_EIGHTHS):
        raise ValueError("the factors name an unknown frequency table")
    residuals = _factor_tables(bits)[1].decode(data[1:], _table_index(shape_SPRC, chosen)).reshape(shape_SPRC)
    if residuals.min() < 0 or residuals.max() >= (1 << bits):
        raise ValueError("a correction factor is out of range")
    residuals[0, :, 0, 0] += 1 << (bits - 1)
    residuals[0, :, :, 0] = residuals[0, :, :, 0].cumsum(axis=-1)
    residuals[0] = residuals[0].cumsum(axis=-1)
    return (residuals.cumsum(axis=0) % (1 << bits)).astype(np.uint8)


def _residuals(levels_SPRC: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int32]:
    levels = levels_SPRC.astype(np.int32)
    predicted = np.empty_like(levels)
    predicted[0, :, 0, 0] = 1 << (bits - 1)
    predicted[0, :, 1:, 0] = levels[0, :, :-1, 0]
    predicted[0, :, :, 1:] = levels[0, :, :, :-1]
    predicted[1:] = levels[:-1]
    return (levels - predicted) % (1 << bits)


def _table_index(shape_SPRC: tuple[int, ...], chosen: list[int]) -> npt.NDArray[np.uint8]:
    steps, _, rows, columns = shape_SPRC
    return np.tile(np.repeat(np.array(chosen, np.uint8), rows * columns), steps)


@functools.cache
def _factor_tables(bits: int) -> tuple[npt.NDArray[np.float64], RangeTables]:
    """Two-sided geometric frequencies around 0 modulo 2**bits, in integers: part of the format.

    Returns the bits that each residual takes in each table, [tables, 2**bits], and the tables.
    """
    n = 1 << bits
    frequencies = []
    for eighths in _DECAY_EIGHTHS:
        weight = [(eighths ** min(r, n - r) << 20) // 8 ** min(r, n - r) for r in range(n)]
        row = [1 + w * (65535 - n) // sum(weight) for w in weight]
        row[0] += 65535 - sum(row)
        frequencies.append([*row, 1])  # the last is the escape code, which no encoder uses
    table = np.array(frequencies)
    cdf = np.concatenate([np.zeros((len(table), 1), np.int64), table.cumsum(1)], axis=1).astype(np.int32)
    rows = np.full(len(table), n + 2, np.int32)
    return 16 - np.log2(table[:, :n]), RangeTables("factors", cdf, rows, np.zeros_like(rows))
