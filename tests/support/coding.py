"""Latents to bytes in one call, where a test does not care that a picture's symbols and their coding are apart."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from corrdiff.format.entropy_tables import EntropyTables, LatentStreams


class Coded(NamedTuple):
    """The latents of a batch as bytes, and as the decoder will see them."""

    streams: list[LatentStreams]
    y_hat_BMhw: Tensor


def encode(tables: EntropyTables, y_BMhw: Tensor, z_BNuv: Tensor, quality: int = 64) -> Coded:
    """Quantise latents and code their symbols; the quality, in sixteenths, is that of all pictures."""
    quality_B = torch.full((len(y_BMhw),), quality)
    symbols, y_hat_BMhw = tables.quantise(y_BMhw, z_BNuv, quality_B)
    streams = tables.code(symbols)
    return Coded(streams, y_hat_BMhw)
