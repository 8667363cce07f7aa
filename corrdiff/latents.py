"""Where the latents of a tile come from: the encoder quantises them, the decoder reads them. Both have the same y_hat.

Shapes: B batch, M latent channels, h w latent positions of a tile's padded core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch.nn.functional as F
from torch import Tensor

from corrdiff import coding
from corrdiff.format.bitstream import Bitstream, Header
from corrdiff.format.entropy_tables import EntropyTables, Symbols
from corrdiff.inference import Networks
from corrdiff.tiling import Tile

T = TypeVar("T")


class QuantisedLatents(Generic[T]):
    """Latents that are quantised when they are asked for; of their symbols, something is kept."""

    def __init__(
        self,
        networks: Networks,
        tables: EntropyTables,
        headers: Sequence[Header],
        y_of: Callable[[Tile], Tensor],
        keep: Callable[[list[Symbols]], list[T]],
    ) -> None:
        """`y_of` gives a tile's y_BMhw before the gain, `keep` makes of each picture's symbols what is kept of them."""
        self._networks, self._tables, self._y_of, self._keep = networks, tables, y_of, keep
        self.g_BM11 = networks.gain([header.quality for header in headers])
        self._quality_B = coding.quality_of(headers)
        self._kept: dict[int, list[T]] = {}

    def __call__(self, tile: Tile) -> Tensor:
        """Quantise a tile's latents: y_hat / g_q, [B, M, h, w]."""
        y_BMhw = self._y_of(tile) * self.g_BM11
        if self._tables.skips_padding:
            (rows, columns), (height, width) = tile.touching, y_BMhw.shape[2:]
            y_BMhw = F.pad(y_BMhw[:, :, :rows, :columns], (0, width - columns, 0, height - rows))
        z_BNuv = self._networks.hyper_analysis(y_BMhw)
        symbols, y_hat_BMhw = self._tables.quantise(y_BMhw, z_BNuv, self._quality_B, tile.touching)
        self._kept[tile.index] = self._keep(symbols)
        return y_hat_BMhw.to(self._networks.device) / self.g_BM11

    def kept(self) -> list[list[T]]:
        """Give what was kept, of each picture that of its tiles in order."""
        return list(map(list, zip(*(self._kept[index] for index in sorted(self._kept)), strict=True)))


class ReadLatents:
    """Latents that are read from files when they are asked for."""

    def __init__(self, networks: Networks, tables: EntropyTables, parsed: Sequence[Bitstream]) -> None:
        self._networks, self._tables, self._parsed = networks, tables, parsed
        self.g_BM11 = networks.gain([p.header.quality for p in parsed])

    def __call__(self, tile: Tile) -> Tensor:
        """Read a tile's latents: y_hat / g_q, [B, M, h, w]. Raises `BitstreamError` where its streams are not valid."""
        y_hat_BMhw = coding.read_latents(self._parsed, tile, self._tables)
        return y_hat_BMhw.to(self._networks.device) / self.g_BM11
