"""Latents to bytes in one call, where a test does not care that a picture's symbols and their coding are apart."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from corrdiff.format.entropy_tables import EntropyTables


class Coded(NamedTuple):
    """The latents of a batch as bytes, and as the decoder will see them."""

    z_streams: list[bytes]
    y_streams: list[bytes]
    y_hat_BMhw: Tensor


def encode(tables: EntropyTables, y_BMhw: Tensor, z_BNuv: Tensor) -> Coded:
    """Quantise latents and code their symbols."""
    symbols, y_hat_BMhw = tables.quantise(y_BMhw, z_BNuv)
    streams = tables.code(symbols)
    return Coded([s.z for s in streams], [s.y for s in streams], y_hat_BMhw)
