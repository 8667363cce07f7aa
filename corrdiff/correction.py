"""The correction of CorrDiff: pull the score network's estimate towards the privileged decoder's picture.

    xtilde0_t = xhat0_t + gamma_low_t * low(D - xhat0_t) + gamma_high_t * high(D - xhat0_t)

With both factors equal this is (1 - gamma_t) * xhat0_t + gamma_t * D; with one plane of factors it is always that.
`low` is what is left of the difference at a quarter of the resolution, `high` the rest: in the coarse part D is nearer
to the original at no loss of texture, in the fine part the two compete. Each factor has a value for each cell of a
grid, interpolated bilinearly between centres. The encoder finds the factors (fitting.py) and codes them
(format/factor_coding.py); the decoder reads them. The idea is from arXiv 2404.04916; the two parts, the grid, the
criterion and the coding are this project's own.

Shapes: x_BCHW pictures in [-1, 1]; P planes of factors, one or two (low and high); g_BPRC factors on a grid of R rows
and C columns of cells; levels are whole numbers 0..2**bits - 1.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """The score network's estimate, and its difference to D in a part for each plane of factors, each [B, 3, H, W]."""

    xhat0_BCHW: Tensor
    planes: tuple[Tensor, ...]
    """All of the difference, or low and high."""

    def crop(self, rows: slice, columns: slice) -> Parts:
        """Cut the same rows and columns out of each part."""
        estimate, *planes = (p[:, :, rows, columns].contiguous() for p in (self.xhat0_BCHW, *self.planes))
        return Parts(estimate, tuple(planes))


def split(xhat0_BCHW: Tensor, d_BCHW: Tensor, planes: int) -> Parts:
    """Make the parts that the factors weigh, one or two; for two, sides must be multiples of COARSE."""
    difference = d_BCHW - xhat0_BCHW
    if planes == 1:
        return Parts(xhat0_BCHW, (difference,))
    low = coarse_part(difference)
    return Parts(xhat0_BCHW, (low, difference.sub_(low)))


def coarse_part(x_BCHW: Tensor) -> Tensor:
    """Take what is left of pictures, or of their difference, at a quarter of the resolution; the rest is their fine
    part."""
    return F.interpolate(F.avg_pool2d(x_BCHW, COARSE), scale_factor=COARSE, mode="bilinear", align_corners=False)


def dequantise(levels_BPRC: Tensor, bits: int) -> Tensor:
    """Make factors of levels, [B, P, R, C]."""
    least_P11 = _least_factor(levels_BPRC.shape[-3], levels_BPRC.device)
    return least_P11 + (1 - least_P11) * levels_BPRC.float() / ((1 << bits) - 1)


@functools.cache
@torch.inference_mode(False)
def _least_factor(planes: int, device: torch.device) -> Tensor:
    """Give LEAST_FACTOR on a device, [P, 1, 1]: copied there once, for each copy is waited for."""
    return torch.tensor(LEAST_FACTOR[:planes], device=device)[:, None, None]


def apply(parts: Parts, g_BPRC: Tensor, grid: Grid, top: int = 0, left: int = 0) -> Tensor:
    """Correct the estimate; (top, left) is where the grid's first pixel lies in the parts."""
    size = parts.xhat0_BCHW.shape[2:]
    g_BPHW = expand(g_BPRC, grid, size[0], size[1], top, left)
    first, *others = parts.planes
    corrected = torch.addcmul(parts.xhat0_BCHW, g_BPHW[:, 0, None], first)
    for plane, part in enumerate(others, 1):
        corrected.addcmul_(g_BPHW[:, plane, None], part)
    return corrected


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
