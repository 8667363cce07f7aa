"""The correction of CorrDiff: pull the score network's estimate towards the privileged decoder's picture.

    xtilde0_t = xhat0_t + gamma_low_t * low(D - xhat0_t) + gamma_high_t * high(D - xhat0_t)

With both factors equal this is (1 - gamma_t) * xhat0_t + gamma_t * D. `low` is what is left of the difference at a
quarter of the resolution, `high` the rest: in the coarse part D is nearer to the original at no loss of texture, in the
fine part the two compete. Each factor has a value for each cell of a grid, interpolated bilinearly between centres. The
encoder finds the factors (fitting.py) and codes them (format/factor_coding.py); the decoder reads them. The idea is
from arXiv 2404.04916; the two parts, the grid, the criterion and the coding are this project's own.

Shapes: x_BCHW pictures in [-1, 1]; P = 2 planes of factors, low and high; g_BPRC factors on a grid of R rows and C
columns of cells; levels are whole numbers 0..2**bits - 1.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff.format.factor_coding import HIGH, LOW

LEAST_FACTOR = (0.0, -0.25)
"""Factors of a plane go from this to 1. Below 0 the fine part is drawn away from D: texture that the score network
leaves too weak is raised to the original's strength."""

COARSE = 4
"""The low part is the difference averaged over blocks of 4x4 pixels and interpolated bilinearly."""


class Grid(NamedTuple):
    """How factor cells lie over a picture or a tile's core."""

    height: int
    width: int
    cell: int
    """Side of a cell in pixels; 0 is one cell for all."""

    @property
    def rows(self) -> int:
        """Count the rows of cells; the last may be cut."""
        return -(-self.height // self.cell) if self.cell else 1

    @property
    def columns(self) -> int:
        """Count the columns of cells; the last may be cut."""
        return -(-self.width // self.cell) if self.cell else 1


class Parts(NamedTuple):
    """The score network's estimate, and its difference to D in two parts, each [B, 3, H, W]."""

    xhat0_BCHW: Tensor
    low_BCHW: Tensor
    high_BCHW: Tensor

    def crop(self, rows: slice, columns: slice) -> Parts:
        """Cut the same rows and columns out of each part."""
        return Parts(*(p[:, :, rows, columns].contiguous() for p in self))


def split(xhat0_BCHW: Tensor, d_BCHW: Tensor) -> Parts:
    """Make the parts that the factors weigh; sides must be multiples of COARSE."""
    difference = d_BCHW - xhat0_BCHW
    coarse = F.avg_pool2d(difference, COARSE)
    low = F.interpolate(coarse, scale_factor=COARSE, mode="bilinear", align_corners=False)
    return Parts(xhat0_BCHW, low, difference.sub_(low))


def dequantise(levels_BPRC: Tensor, bits: int) -> Tensor:
    """Make factors of levels, [B, P, R, C]."""
    least_P11 = _least_factor(levels_BPRC.device)
    return least_P11 + (1 - least_P11) * levels_BPRC.float() / ((1 << bits) - 1)


@functools.cache
@torch.inference_mode(False)
def _least_factor(device: torch.device) -> Tensor:
    """Give LEAST_FACTOR on a device, [P, 1, 1]: copied there once, for each copy is waited for."""
    return torch.tensor(LEAST_FACTOR, device=device)[:, None, None]


def apply(parts: Parts, g_BPRC: Tensor, grid: Grid, top: int = 0, left: int = 0) -> Tensor:
    """Correct the estimate; (top, left) is where the grid's first pixel lies in the parts."""
    size = parts.xhat0_BCHW.shape[2:]
    g_BPHW = expand(g_BPRC, grid, size[0], size[1], top, left)
    corrected = torch.addcmul(parts.xhat0_BCHW, g_BPHW[:, LOW, None], parts.low_BCHW)
    return corrected.addcmul_(g_BPHW[:, HIGH, None], parts.high_BCHW)


def expand(g: Tensor, grid: Grid, height: int, width: int, top: int = 0, left: int = 0) -> Tensor:
    """Expand factors [..., R, C] to a factor for each pixel [..., height, width], bilinearly between cell centres.

    Beyond the outermost centres, and so outside the grid, the nearest value goes on.
    """
    rows = _interpolation(height, grid.rows, grid.cell, top, g.device)
    columns = _interpolation(width, grid.columns, grid.cell, left, g.device)
    return rows @ g @ columns.T


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _interpolation(size: int, cells: int, cell: int, start: int, device: torch.device) -> Tensor:
    """Compute the weights of the cells at each pixel along one axis, [size, cells]."""
    if cells == 1:
        return torch.ones(size, 1, device=device)
    position = ((torch.arange(size) - start + 0.5) / cell - 0.5).clamp(0, cells - 1)
    lower = position.floor().clamp(max=cells - 2).long()
    weight = torch.zeros(size, cells)
    weight.scatter_(1, lower[:, None], (1 - (position - lower))[:, None])
    weight.scatter_(1, lower[:, None] + 1, (position - lower)[:, None])
    return weight.to(device)
