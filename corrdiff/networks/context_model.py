"""The entropy model with context in training, and its freezing into the tables that coding uses.

    y --H_a--> z --+u--> p(z)
               z_hat --H_s--> h
    slices of y before, the other half of its own, h  -->  m, sigma
    y --+u--> logistic(m, sigma) * U

The walk is that of `format/latent_models.py`, in floating point: slices of channels, each in two halves, the colours of
a checkerboard. `freeze` makes whole numbers of the networks once, at export.

Shapes: y_BMhw latent at 1/16 after the gain; z_BNuv hyperlatent at 1/64; u_* uniform noise in [-0.5, 0.5); q_B quality
levels; m channels of a slice.
"""

from __future__ import annotations

import math
from itertools import accumulate

import torch
import torch.nn.functional as F
from compressai.ops import LowerBound
from torch import Tensor, nn

from corrdiff.config import QUALITIES, TransformConfig
from corrdiff.format.entropy_tables import THRESHOLD_ONE, EntropyTables
from corrdiff.format.latent_models import CONTEXT_LIMIT, MEAN_FRACTION_BITS, SCALE_LEVELS, context_of, dark_squares
from corrdiff.networks.entropy_model import (
    SCALE_MAX,
    SCALE_MIN,
    FactorizedPrior,
    LatentRate,
    index_of_scale,
    prior_tables,
    round_straight_through,
    scale_of_index,
)
from corrdiff.networks.freezing import integer_conv, row_tables, table_tensors
from corrdiff.networks.layers import conv3x3
from corrdiff.networks.transforms import SCALE_INDEX_BIAS, SCALE_INDEX_GAIN, HyperAnalysis, HyperFeatures

LOGISTIC_SHARPNESS = math.pi / math.sqrt(3)
"""A logistic distribution of that sharpness has standard deviation 1."""

OUT_INIT = 0.3
"""The last layers start this much smaller: near the scales that the bias says."""

RATE_WEIGHT = 0.1
"""What a bit is worth to the encoder unless it is told: where gains start it is 3 beta / step**2 = 0.115
(`model.STEP_OF_BETA`)."""

MOST_THRESHOLD = 15
"""Symbols larger than that are always the nearest."""

_TAIL = 2.0**-15
LIKELIHOOD_MIN = 1e-9


class SliceContext(nn.Module):
    """What predicts one half of a slice: what is decoded -> (m, scale index without its bias), each [B, m, h, w]."""

    def __init__(self, inputs: int, hidden: int, size: int) -> None:
        super().__init__()
        self.hidden = conv3x3(inputs, hidden)
        self.out = nn.Conv2d(hidden, 2 * size, 1)
        with torch.no_grad():
            self.out.weight.mul_(OUT_INIT)

    def forward(self, seen_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        m, index = self.out(F.relu(self.hidden(seen_BCHW))).chunk(2, dim=1)
        return m, index * SCALE_INDEX_GAIN


class ContextEntropyModel(nn.Module):
    """Hyperprior, slices of channels and a checkerboard over the gained latent, for training."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.slices = list(config.slices)
        self.hyper_analysis = HyperAnalysis(config)
        self.hyper_synthesis = HyperFeatures(config)
        self.prior = FactorizedPrior(config.hyper_channels)
        self.likelihood_at_least = LowerBound(LIKELIHOOD_MIN)
        seen = [config.context_channels + 2 * n for n in accumulate(self.slices, initial=0)]
        self.first = nn.ModuleList(
            SliceContext(inputs, config.context_channels, size) for inputs, size in zip(seen, self.slices, strict=False)
        )
        self.second = nn.ModuleList(
            SliceContext(inputs + 2 * size, config.context_channels, size)
            for inputs, size in zip(seen, self.slices, strict=False)
        )
        start_QM = torch.full((QUALITIES, config.latent_channels), SCALE_INDEX_BIAS / SCALE_INDEX_GAIN)
        self.scale_bias_QM = nn.Parameter(start_QM)
        """Over SCALE_INDEX_GAIN, so that it learns as quickly as the networks' own."""

    @torch.no_grad()
    def start(self, deviation_QM: Tensor) -> None:
        """Let scales start at the standard deviations of symbols at each quality level, before anything is learned."""
        self.scale_bias_QM.copy_(index_of_scale(deviation_QM.clamp(SCALE_MIN, SCALE_MAX)) / SCALE_INDEX_GAIN)

    def forward(self, y_BMhw: Tensor, q_B: Tensor, u_y_BMhw: Tensor | None, u_z_BNuv: Tensor | None) -> LatentRate:
        """Rate with additive noise (training), or with rounding where the noise is None (evaluation)."""
        y_BMhw = y_BMhw.float()
        z_BNuv = self.hyper_analysis(y_BMhw)
        z_hat_BNuv = round_straight_through(z_BNuv)
        p_z = self.prior(z_hat_BNuv if u_z_BNuv is None else z_BNuv + u_z_BNuv)
        bits_B = -p_z.log2().flatten(1).sum(1)
        seen = self.hyper_synthesis(z_hat_BNuv)
        bias_BM11 = (self.scale_bias_QM[q_B] * SCALE_INDEX_GAIN)[:, :, None, None]
        height, width = y_BMhw.shape[2:]
        dark_hw = dark_squares(height, width, y_BMhw.device)
        slices: list[Tensor] = []
        parts = zip(
            torch.split(y_BMhw, self.slices, 1), torch.split(bias_BM11, self.slices, 1),
            [None] * len(self.slices) if u_y_BMhw is None else torch.split(u_y_BMhw, self.slices, 1),
            self.first, self.second, strict=True,
        )  # fmt: skip
        for y, bias, u, first, second in parts:
            m_first, index_first = first(seen)
            half = (round_straight_through(y - m_first) + m_first) * dark_hw
            m_second, index_second = second(torch.cat([seen, context_of(half, CONTEXT_LIMIT) / 4], 1))
            m = torch.where(dark_hw, m_first, m_second)
            index = torch.where(dark_hw, index_first, index_second) + bias
            y_hat = round_straight_through(y - m) + m
            p_y = self.likelihood_at_least(logistic_likelihood(y_hat - m if u is None else y + u - m, index))
            bits_B = bits_B - p_y.log2().flatten(1).sum(1)
            seen = torch.cat([seen, context_of(y_hat, CONTEXT_LIMIT) / 4], 1)
            slices.append(y_hat)
        return LatentRate(torch.cat(slices, 1), bits_B)

    @torch.no_grad()
    def freeze(self, rate_weight: float = RATE_WEIGHT) -> EntropyTables:
        """Range tables and the integer networks, from the weights as they are now.

        `rate_weight` is the squared error, in steps squared, that the encoder gives to save a bit.
        """
        h_s = self.hyper_synthesis
        tensors = {
            **table_tensors("z", *prior_tables(self.prior)),
            **table_tensors("y", *_logistic_tables()),
            "y.threshold": _thresholds(rate_weight),
            **integer_conv("h_s.0", h_s.conv1, fraction_in=0), **integer_conv("h_s.1", h_s.conv2),
            **integer_conv("h_s.2", h_s.conv3),
            "y.slices": torch.tensor(self.slices, dtype=torch.int32),
            "y.scale_bias": (self.scale_bias_QM * SCALE_INDEX_GAIN * 2**MEAN_FRACTION_BITS).round().cpu().int(),
        }  # fmt: skip
        for half, contexts in enumerate((self.first, self.second)):
            for k, context in enumerate(contexts):
                assert isinstance(context, SliceContext)
                size = self.slices[k]
                gain = torch.cat([torch.ones(size), torch.full((size,), SCALE_INDEX_GAIN)])
                name = f"context.{k}.{half}"
                tensors |= integer_conv(f"{name}.hidden", context.hidden)
                tensors |= integer_conv(f"{name}.out", context.out, gain=gain)
        return EntropyTables(tensors)


def logistic_likelihood(v: Tensor, index: Tensor) -> Tensor:
    """Likelihood of values that are v from their means, in intervals of 1; `index` is a position in the scale table."""
    distance = v.abs()
    sharpness = LOGISTIC_SHARPNESS / scale_of_index(index)
    return torch.sigmoid((0.5 - distance) * sharpness) - torch.sigmoid((-0.5 - distance) * sharpness)


def _thresholds(rate_weight: float) -> Tensor:
    """|v| - |s| below which a symbol one nearer to 0 is better, for each scale and |s| up to one above the largest."""
    size = torch.arange(MOST_THRESHOLD + 2, dtype=torch.float64)
    index = torch.arange(float(SCALE_LEVELS), dtype=torch.float64)[:, None]
    bits = -logistic_likelihood(size, index).clamp(min=1e-30).log2()
    threshold = (rate_weight * bits.diff(dim=1) - 1) / 2
    never = torch.full((SCALE_LEVELS, 1), -1.0, dtype=torch.float64)
    return (torch.cat([never, threshold[:, :MOST_THRESHOLD], never], 1) * THRESHOLD_ONE).round().int()


def _logistic_tables() -> tuple[Tensor, Tensor, Tensor]:
    """A row of frequencies for each scale, as wide as all but the rarest symbols."""
    rows: list[Tensor] = []
    offsets: list[int] = []
    for scale in scale_of_index(torch.arange(float(SCALE_LEVELS))).double().tolist():
        sharpness = LOGISTIC_SHARPNESS / scale
        reach = max(1, math.ceil(math.log(1 / _TAIL) / sharpness))
        edges = torch.arange(-reach, reach + 2, dtype=torch.float64) - 0.5
        rows.append(torch.sigmoid(edges[1:] * sharpness) - torch.sigmoid(edges[:-1] * sharpness))
        offsets.append(-reach)
    return row_tables(rows, offsets)
