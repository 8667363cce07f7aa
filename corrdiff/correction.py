"""The correction of CorrDiff: pull the score network's estimate towards the privileged decoder's picture.

    xtilde0_t = (1 - gamma_t) * xhat0_t + gamma_t * D(y_hat)

gamma_t has a value for each cell of a grid, interpolated bilinearly between cell centres. The encoder finds the
factors, quantises them and codes them; the decoder reads them. The idea is from arXiv 2404.04916; the grid, the
criterion and the coding here are this project's own.

Shapes: x_BCHW pictures in [-1, 1]; g_BRC factors on a grid of R rows and C columns; levels are whole numbers
0..2**bits - 1.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff.config import GRID_UNIT
from corrdiff.entropy_model import RangeTable

BLOCK = GRID_UNIT
"""Texture is compared on blocks of 8x8 samples of a band; a cell's side is a multiple of it."""

_BANDS = 2
_VARIANCE_FLOOR = (2 / 255) ** 2
"""One grey level: texture below it is not seen, and its logarithm must not weigh."""
_ERROR_FLOOR = 1e-6

# Ratio of the frequencies of neighbouring residuals, in eighths, for each of the coder's tables.
_DECAY_EIGHTHS = (0, 1, 2, 3, 4, 5, 6, 8)


class Grid(NamedTuple):
    """How factor cells lie over a picture."""

    height: int
    width: int
    cell: int
    """Side of a cell in pixels; 0 is one cell for the whole picture."""

    @property
    def rows(self) -> int:
        return -(-self.height // self.cell) if self.cell else 1

    @property
    def columns(self) -> int:
        return -(-self.width // self.cell) if self.cell else 1


def dequantise(levels: Tensor, bits: int) -> Tensor:
    """Levels -> factors in [0, 1]."""
    return levels.float() / ((1 << bits) - 1)


def apply(xhat0_BCHW: Tensor, d_BCHW: Tensor, g_BRC: Tensor, grid: Grid) -> Tensor:
    """The corrected estimate. The pictures may be padded beyond the grid's size; edge values go on there."""
    g_B1HW = expand(g_BRC, grid, xhat0_BCHW.shape[2], xhat0_BCHW.shape[3])[:, None]
    return xhat0_BCHW + g_B1HW * (d_BCHW - xhat0_BCHW)


def expand(g_BRC: Tensor, grid: Grid, height: int, width: int) -> Tensor:
    """Factors on the grid -> a factor for each pixel, [B, height, width], bilinear between cell centres."""
    rows = _interpolation(height, grid.rows, grid.cell).to(g_BRC)
    columns = _interpolation(width, grid.columns, grid.cell).to(g_BRC)
    return rows @ g_BRC @ columns.T


@functools.lru_cache(maxsize=64)
def _interpolation(size: int, cells: int, cell: int) -> Tensor:
    """[size, cells] weights of the cells at each pixel along one axis."""
    if cells == 1:
        return torch.ones(size, 1)
    position = ((torch.arange(size) + 0.5) / cell - 0.5).clamp(0, cells - 1)
    lower = position.floor().clamp(max=cells - 2).long()
    weight = torch.zeros(size, cells)
    weight.scatter_(1, lower[:, None], (1 - (position - lower))[:, None])
    weight.scatter_(1, lower[:, None] + 1, (position - lower)[:, None])
    return weight


class Target(NamedTuple):
    """What the fit needs of the original and of D's picture, once an image (cropped to the true size)."""

    x_0_BCHW: Tensor
    d_BCHW: Tensor
    x_energy: list[Tensor]
    d_bands: list[Tensor]
    d_energy: list[Tensor]


def prepare_target(x_0_BCHW: Tensor, d_BCHW: Tensor) -> Target:
    """Bands and local energies of the pictures that do not change over the steps."""
    d_bands = _bands(d_BCHW)
    x_energy = [_block_mean(b * b) for b in _bands(x_0_BCHW)]
    return Target(x_0_BCHW, d_BCHW, x_energy, d_bands, [_block_mean(b * b) for b in d_bands])


def fit_factors(target: Target, xhat0_BCHW: Tensor, grid: Grid, bits: int, fidelity: float) -> Tensor:
    """The best level of each cell, [B, R, C], by trying all 2**bits.

    The criterion is `fidelity * log(squared error) + (1 - fidelity) * texture error`, where texture error is the mean
    absolute log ratio of local band energies to the original's. Both are quadratics in gamma inside the logarithm,
    so all levels cost one pass over the picture. Where D and xhat0 agree, the level is 0.
    """
    gamma_L = torch.arange((1 << bits), device=xhat0_BCHW.device, dtype=torch.float32) / ((1 << bits) - 1)
    g = gamma_L[:, None, None, None]
    residual, step = target.x_0_BCHW - xhat0_BCHW, target.d_BCHW - xhat0_BCHW
    rr, rs, ss = (_pixel_mean(v.mean(1), grid) for v in (residual * residual, residual * step, step * step))
    error_LBRC = (rr - 2 * g * rs + g * g * ss).clamp(min=0)
    cost_LBRC = fidelity * torch.log(error_LBRC + _ERROR_FLOOR)
    if fidelity < 1:
        texture = torch.zeros_like(cost_LBRC)
        for i, a in enumerate(_bands(xhat0_BCHW)):
            aa, ad = _block_mean(a * a), _block_mean(a * target.d_bands[i])
            energy = ((1 - g) ** 2 * aa + 2 * g * (1 - g) * ad + g * g * target.d_energy[i]).clamp(min=0)
            texture += _cell_mean(_log_ratio(energy, target.x_energy[i]), grid, 2**i)
        cost_LBRC = cost_LBRC + (1 - fidelity) * texture / _BANDS
    best = cost_LBRC.argmin(0)
    return torch.where(ss > 0, best, torch.zeros_like(best))


def texture_error(x_0_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
    """Mean absolute log ratio of local band energies to the original's, [B]; 0 is the same texture everywhere."""
    parts = [
        _log_ratio(_block_mean(b * b), _block_mean(a * a)).flatten(1).mean(1)
        for a, b in zip(_bands(x_0_BCHW), _bands(x_BCHW), strict=True)
    ]
    return torch.stack(parts).mean(0)


def _log_ratio(energy: Tensor, reference: Tensor) -> Tensor:
    return (torch.log(energy + _VARIANCE_FLOOR) - torch.log(reference + _VARIANCE_FLOOR)).abs()


def _bands(x_BCHW: Tensor) -> list[Tensor]:
    """Laplacian pyramid of the channel mean, finest band first: [B, H, W], then half the size."""
    low = x_BCHW.float().mean(1, keepdim=True)
    kernel = torch.tensor([0.25, 0.5, 0.25], device=low.device)
    kernel = (kernel[:, None] * kernel[None])[None, None]
    bands: list[Tensor] = []
    for i in range(_BANDS):
        if i > 0:
            low = F.avg_pool2d(low, 2, ceil_mode=True)
        smooth = F.conv2d(F.pad(low, (1, 1, 1, 1), mode="replicate"), kernel)
        bands.append((low - smooth)[:, 0])
        low = smooth
    return bands


def _block_mean(x_BHW: Tensor) -> Tensor:
    return F.avg_pool2d(x_BHW[:, None], BLOCK, ceil_mode=True)[:, 0]


def _pixel_mean(x_BHW: Tensor, grid: Grid) -> Tensor:
    """Means over the pixels of each cell, [B, R, C]."""
    if grid.cell == 0:
        return x_BHW.mean((-2, -1), keepdim=True)
    return F.avg_pool2d(x_BHW[:, None], grid.cell, ceil_mode=True)[:, 0]


def _cell_mean(blocks: Tensor, grid: Grid, scale: int) -> Tensor:
    """Means over blocks (of a band at 1/scale) -> means over cells, last two axes."""
    if grid.cell == 0:
        return blocks.mean((-2, -1), keepdim=True)
    shape = blocks.shape
    flat = blocks.reshape(-1, 1, *shape[-2:])
    if grid.cell % (BLOCK * scale):  # a cell smaller than a block of this band: take the nearest
        cells = F.interpolate(flat, (grid.rows, grid.columns), mode="nearest")
    else:
        side = grid.cell // (BLOCK * scale)
        cells = F.avg_pool2d(flat, side, ceil_mode=True)
    return cells.reshape(*shape[:-2], *cells.shape[-2:])


def encode_factors(levels_SRC: npt.NDArray[np.uint8], bits: int) -> bytes:
    """Levels of all steps -> bytes: the number of the frequency table that codes them best, then rANS.

    A level is coded as its difference (modulo 2**bits) from the same cell one step earlier; in the first step from its
    left neighbour.
    """
    residuals = _residuals(levels_SRC, bits).tolist()
    tables = _factor_tables(bits)
    streams = [tables.encode(residuals, [i] * len(residuals)) for i in range(len(_DECAY_EIGHTHS))]
    best = min(range(len(streams)), key=lambda i: len(streams[i]))
    return bytes([best]) + streams[best]


def decode_factors(data: bytes, shape_SRC: tuple[int, int, int], bits: int) -> npt.NDArray[np.uint8]:
    """Inverse of `encode_factors`. Raises `ValueError` where the bytes are no factors."""
    if not data or data[0] >= len(_DECAY_EIGHTHS):
        raise ValueError("the factors name an unknown frequency table")
    count = int(np.prod(shape_SRC))
    residuals = _factor_tables(bits).decode(data[1:], [data[0]] * count).numpy()
    if count and (residuals.min() < 0 or residuals.max() >= (1 << bits)):
        raise ValueError("a correction factor is out of range")
    residuals = residuals.reshape(shape_SRC)
    levels = np.zeros(shape_SRC, dtype=np.int64)
    for s in range(shape_SRC[0]):
        levels[s] = levels[s - 1] + residuals[s] if s else residuals[0].cumsum(axis=1)
    return (levels % (1 << bits)).astype(np.uint8)


def _residuals(levels_SRC: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.int64]:
    levels = levels_SRC.astype(np.int64)
    predicted = np.zeros_like(levels)
    predicted[0, :, 1:] = levels[0, :, :-1]
    predicted[1:] = levels[:-1]
    flat: npt.NDArray[np.int64] = ((levels - predicted) % (1 << bits)).reshape(-1)
    return flat


@functools.cache
def _factor_tables(bits: int) -> RangeTable:
    """Two-sided geometric frequencies around 0 modulo 2**bits, in integers: part of the format."""
    n = 1 << bits
    cdfs: list[list[int]] = []
    for eighths in _DECAY_EIGHTHS:
        weight = [(eighths ** min(r, n - r) << 20) // 8 ** min(r, n - r) for r in range(n)]
        frequency = [1 + w * (65535 - n) // sum(weight) for w in weight]
        frequency[0] += 65535 - sum(frequency)
        cdf = [0]
        for f in [*frequency, 1]:  # the last is the escape code, which no encoder uses
            cdf.append(cdf[-1] + f)
        cdfs.append(cdf)
    return RangeTable(cdfs, [n + 2] * len(cdfs), [0] * len(cdfs))
