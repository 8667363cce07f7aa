"""The reverse process over one tile, which encoder and decoder run alike; they differ in who says the factors.

Shapes: B batch, H W pixels of the tile's window, S steps, P planes of factors, R C rows and columns of factor cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from corrdiff import correction, diffusion
from corrdiff.config import T_MAX
from corrdiff.correction import Parts
from corrdiff.format.noise import format_noise
from corrdiff.inference import Networks
from corrdiff.tiling import Tile


class Factors(Protocol):
    """Who says the factors of a tile: `FittedFactors` or `ReadFactors`."""

    planes: int

    def at(self, step: int, parts: Parts) -> Tensor:
        """Give the factors of a step, [B, P, R, C], which will weigh these parts of the tile's window."""


def run(
    networks: Networks, y_hat_BMhw: Tensor, d_BCHW: Tensor, tile: Tile, times: Sequence[float], factors: Factors | None
) -> Tensor:
    """Run the reverse process, corrected in each step where there are factors.

    Args:
        networks: on the device of the tensors.
        y_hat_BMhw: y_hat / g_q under the tile's window.
        d_BCHW: D's picture of it.
        tile: where that is.
        times: those of the S evaluations of the score network, and the 0 at the end; it starts from D's picture
            diffused to the first, at T_MAX from noise alone.
        factors: who says how much of D each step takes.

    Returns:
        The picture under the window, [B, 3, H, W] in [-1, 1].
    """
    batch, _, height, width = d_BCHW.shape
    context = networks.context(y_hat_BMhw, d_BCHW)
    top, left = tile.row.begin, tile.column.begin
    x_t_BCHW = format_noise(height, width, top, left).to(d_BCHW.device).repeat(batch, 1, 1, 1)
    if times[0] < T_MAX:
        x_t_BCHW = diffusion.add_noise(d_BCHW, x_t_BCHW, torch.full((batch,), times[0], device=d_BCHW.device))
    rows, columns = tile.core_in_window
    for step, (t, t_next) in enumerate(itertools.pairwise(times)):
        x_0_BCHW = networks.estimate(x_t_BCHW, context, t)
        if factors:
            parts = correction.split(x_0_BCHW, d_BCHW, factors.planes)
            x_0_BCHW = correction.apply(parts, factors.at(step, parts), tile.grid, rows.start, columns.start)
        if t_next > 0:
            x_t_BCHW = diffusion.ddim_step(x_t_BCHW, x_0_BCHW, t, t_next)
    return x_0_BCHW
