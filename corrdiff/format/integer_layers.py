"""Convolutions on whole numbers, the same on every device.

Weights and activations are whole numbers held in float64, and every sum of their products stays under 2**53: so no
result depends on the order of summation, and with it not on threads, layout, batch or device.

Shapes: x_BCHW activations; positions L of a picture, row by row; K side of a kernel, 1 or 3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff.errors import UsageError

ACTIVATION_FRACTION_BITS = 8
"""Activations between layers are whole multiples of 2**-8."""
ACTIVATION_LIMIT = 1 << 20
"""Largest activation, as a whole number."""
WEIGHT_LIMIT = 1 << 15
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
"""2**64 over the golden ratio, as a signed number: its multiples, modulo 2**64, lie everywhere (Fibonacci hashing)."""
MOST_CHANNELS = 1 << 14
"""9 * 2**14 products of a weight and an activation stay under 2**53."""


class IntegerConv(NamedTuple):
    """A convolution with a kernel of 1x1 or 3x3, zero-padded, on whole numbers held in float64."""

    weight: Tensor
    """[outputs, inputs * K * K]"""
    bias: Tensor
    """[outputs, 1], in units of the accumulator."""
    fraction_bits: int
    """Binary places of the accumulator."""
    side: int
    """K."""

    @staticmethod
    def of(tensors: dict[str, Tensor], name: str) -> IntegerConv:
        """Take a layer from a codec's tables. Raises `UsageError` where it is missing, or could leave exact numbers."""
        try:
            weight, bias, fraction = (tensors[f"{name}.{part}"] for part in ("weight", "bias", "fraction_bits"))
        except KeyError as error:
            raise UsageError(f"codec tables: {error} is missing") from None
        if weight.ndim != 4 or 0 in weight.shape or weight.shape[2:] not in ((1, 1), (3, 3)):
            raise UsageError(f"codec tables: '{name}' has an unexpected shape")
        if bias.shape != weight.shape[:1] or weight.shape[1] > MOST_CHANNELS:
            raise UsageError(f"codec tables: '{name}' has an unexpected shape")
        dtypes = weight.dtype, bias.dtype, fraction.dtype
        if dtypes != (torch.int32, torch.int64, torch.int32) or fraction.numel() != 1:
            raise UsageError(f"codec tables: '{name}' is not of integers")
        if weight.double().abs().max() > WEIGHT_LIMIT or bias.double().abs().max() >= 1 << 50:
            raise UsageError(f"codec tables: '{name}' has a weight outside its range")
        if not ACTIVATION_FRACTION_BITS <= int(fraction) <= 64:
            raise UsageError(f"codec tables: '{name}' has {int(fraction)} fraction bits")
        return IntegerConv(weight.double().flatten(1), bias.double()[:, None], int(fraction), weight.shape[2])

    @property
    def inputs(self) -> int:
        """Count the input channels."""
        return self.weight.shape[1] // self.side**2

    @property
    def outputs(self) -> int:
        """Count the output channels."""
        return len(self.bias)

    def to(self, device: torch.device) -> IntegerConv:
        """Copy the layer to a device."""
        return self._replace(weight=self.weight.to(device), bias=self.bias.to(device))

    def __call__(self, x_BCHW: Tensor, out_fraction_bits: int) -> Tensor:
        """Convolve: activations -> whole multiples of 2**-out_fraction_bits, rounded, of the same height and width."""
        out_BCL = self.at(self.columns(x_BCHW), out_fraction_bits)
        return out_BCL.reshape(len(x_BCHW), -1, *x_BCHW.shape[2:])

    def columns(self, x_BCHW: Tensor) -> Tensor:
        """What the kernel sees at each position: [B, inputs * K * K, L]."""
        return F.unfold(x_BCHW, self.side, padding=self.side // 2)

    def at(self, columns_BKL: Tensor, out_fraction_bits: int) -> Tensor:
        """Convolve at some positions only, given by their columns: [B, outputs, L]."""
        # Not conv2d: it may choose an algorithm (Winograd, FFT) that is not a sum of products.
        accumulated = self.sums(columns_BKL) + self.bias
        return torch.floor(accumulated / 2.0 ** (self.fraction_bits - out_fraction_bits) + 0.5)

    def sums(self, columns_BKL: Tensor) -> Tensor:
        """Sum the products of weights and activations: [B, outputs, L]."""
        return self.weight @ columns_BKL

    def is_exact(self, positions: int) -> bool:
        """Whether the device that the layer is on sums so many positions exactly, up to the largest activations.

        A library may emulate float64 for large products, with fewer digits (cuBLAS, CUBLAS_EMULATE_DOUBLE_PRECISION).
        This is Freivalds' check (1977): the sums, weighted by a number for each position, are found in another order as
        well, in whole numbers modulo 2**64, where nothing is rounded.
        """
        inputs, device = self.weight.shape[1], self.weight.device
        columns_KL = _scattered(inputs * positions, device).reshape(inputs, positions) & (ACTIVATION_LIMIT - 1)
        number_L = _scattered(positions, device) | 1
        found_C = (self.sums(columns_KL[None].double())[0].long() * number_L).sum(1)
        return torch.equal(found_C, (self.weight.long() * (columns_KL * number_L).sum(1)).sum(1))


def _scattered(count: int, device: torch.device) -> Tensor:
    """Whole numbers that look random, the same on every device, int64 [count]."""
    return (torch.arange(1, count + 1, device=device) * _GOLDEN) >> 20
