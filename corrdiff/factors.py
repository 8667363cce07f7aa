"""Where the factors of a tile come from: the encoder finds them, the decoder reads them. Both have the same numbers.

Shapes: B batch, S steps, P planes of factors, R C rows and columns of factor cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrdiff import coding, correction
from corrdiff.correction import Parts
from corrdiff.fitting import Criterion, Fit
from corrdiff.format.bitstream import Bitstream, Header
from corrdiff.tiling import Tile


class FittedFactors:
    """Factors that are found step by step, each for what the steps before it have made."""

    def __init__(
        self,
        x_core_BCHW: Tensor,
        d_BCHW: Tensor,
        tile: Tile,
        header: Header,
        criterion: Criterion,
    ) -> None:
        """`x_core_BCHW` is the original under the tile's core, `d_BCHW` D's picture under its window."""
        rows, columns = tile.core_in_window
        self.planes, bits = header.planes, header.factor_bits
        self._fit = Fit(x_core_BCHW, d_BCHW[:, :, rows, columns], tile.grid, bits, self.planes, criterion)
        self._rows, self._columns, self._bits = rows, columns, bits
        self._levels: list[Tensor] = []

    def at(self, step: int, parts: Parts) -> Tensor:
        """Find the next step's factors, [B, P, R, C], for parts of the window: those that a decoder will read."""
        self._levels.append(self._fit(parts.crop(self._rows, self._columns)))
        return correction.dequantise(self._levels[-1], self._bits)

    def levels(self) -> list[npt.NDArray[np.uint8]]:
        """Give the levels of all steps so far for each picture, [S, P, R, C]: what is coded."""
        return list(torch.stack(self._levels, dim=1).to("cpu", torch.uint8).numpy())


class ReadFactors:
    """Factors that files hold."""

    def __init__(self, parsed: Sequence[Bitstream], tile: Tile, device: torch.device) -> None:
        """Read them; raises `BitstreamError` where they are not valid."""
        self.planes = parsed[0].header.planes
        self._g_SBPRC = torch.stack([coding.read_factors(p, tile) for p in parsed], dim=1).to(device)

    def at(self, step: int, parts: Parts) -> Tensor:
        """Give the factors of that step, [B, P, R, C], whatever the parts are."""
        return self._g_SBPRC[step]
