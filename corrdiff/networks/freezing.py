"""Trained entropy models -> the whole numbers that coding uses: range tables, and networks as integer convolutions."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from corrdiff.format.integer_layers import ACTIVATION_FRACTION_BITS, WEIGHT_LIMIT

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # compressai scripts its layers with torch.jit at import
    from compressai.entropy_models.entropy_models import pmf_to_quantized_cdf

MOST_WEIGHT_BITS = 20
"""Binary places of weights that are all small."""


def table_tensors(name: str, cdf: Tensor, length: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """Name the parts of a table as a codec stores them."""
    parts = {"cdf": cdf, "length": length, "offset": offset}
    return {f"{name}.{part}": tensor.to("cpu", torch.int32).contiguous() for part, tensor in parts.items()}


def row_tables(pmfs: list[Tensor], offsets: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Make a table of distributions whose first symbols are the offsets: cumulative rows, lengths, offsets."""
    rows = [_quantised_cdf(pmf) for pmf in pmfs]
    packed = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.int32)
    for i, row in enumerate(rows):
        packed[i, : len(row)] = row
    return packed, torch.tensor([len(row) for row in rows]), torch.tensor(offsets)


def _quantised_cdf(pmf: Tensor) -> Tensor:
    """Compute 16-bit cumulative frequencies of a distribution and, behind it, of the escape code."""
    tail = (1.0 - pmf.sum()).clamp(min=2.0**-16)
    cdf: Tensor = pmf_to_quantized_cdf(torch.cat([pmf, tail[None]]).float())
    return cdf


def integer_conv(
    name: str, conv: nn.Conv2d, fraction_in: int = ACTIVATION_FRACTION_BITS, gain: Tensor | None = None,
    shift: Tensor | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Give a convolution as whole numbers, its weights with a power-of-two scale of their own.

    Args:
        name: what its tensors are called by.
        conv: the layer as it was trained.
        fraction_in: binary places of its input.
        gain: what each output is multiplied by afterwards in training, [outputs].
        shift: what is added to it then.
    """
    assert conv.bias is not None
    weight, bias = conv.weight.detach().double().cpu(), conv.bias.detach().double().cpu()
    if gain is not None:
        weight, bias = weight * gain.double()[:, None, None, None], bias * gain.double()
    if shift is not None:
        bias = bias + shift.double()
    largest = max(float(weight.abs().max()), 1e-6)
    bits = min(MOST_WEIGHT_BITS, math.floor(math.log2((WEIGHT_LIMIT - 1) / largest)))
    fraction = fraction_in + bits
    return {
        f"{name}.weight": (weight * 2.0**bits).round().to(torch.int32).contiguous(),
        f"{name}.bias": (bias * 2.0**fraction).round().to(torch.int64).contiguous(),
        f"{name}.fraction_bits": torch.tensor(fraction, dtype=torch.int32),
    }
