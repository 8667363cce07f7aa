"""The entropy model in training, and its freezing into the tables that coding uses.

    y --H_a--> z --+u--> p(z)
               z_hat --H_s--> m, sigma
    y --+u--> N(m, sigma) * U

The networks here are floating point. `freeze` makes whole numbers of them once, at export (`entropy_tables.py`).

Shapes: y_BMhw latent at 1/16 after the gain; z_BNuv hyperlatent at 1/64; u_* uniform noise in [-0.5, 0.5).
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from corrdiff.config import TransformConfig
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.format.latent_models import SCALE_LEVELS
from corrdiff.networks.freezing import integer_conv, row_tables, table_tensors
from corrdiff.networks.transforms import SCALE_INDEX_BIAS, SCALE_INDEX_GAIN, HyperAnalysis, HyperSynthesis

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # compressai scripts its layers with torch.jit at import
    from compressai.entropy_models import EntropyBottleneck, GaussianConditional

SCALE_MIN = 0.11
"""Smallest sigma in the table (compressai's scale bound)."""
SCALE_MAX = 64.0
SCALE_LOG_STEP = math.log(SCALE_MAX / SCALE_MIN) / (SCALE_LEVELS - 1)

_PRIOR_RANGE = 256
"""Support searched for the table of one hyperlatent channel; rarer symbols take the escape code."""
_PRIOR_TAIL = 2.0**-15


class LatentRate(NamedTuple):
    """What training needs of the latents."""

    y_hat_BMhw: Tensor
    """The latents, rounded, with their gradient passed straight through."""
    bits_B: Tensor
    """Estimated bits of y and z together."""


def round_straight_through(x: Tensor) -> Tensor:
    """Round forwards, and be the identity backwards."""
    return x + (x.round() - x).detach()


def scale_of_index(index: Tensor) -> Tensor:
    """Give sigma at a continuous position in the scale table, clamped to the table."""
    return SCALE_MIN * torch.exp(index.clamp(0, SCALE_LEVELS - 1) * SCALE_LOG_STEP)


def index_of_scale(scale: Tensor) -> Tensor:
    """Give the continuous position of sigma in the scale table."""
    return (scale / SCALE_MIN).log() / SCALE_LOG_STEP


class FactorizedPrior(EntropyBottleneck):  # type: ignore[misc]
    """p(z): the fully factorised density of arXiv 1802.01436, with the noise given by the caller.

    The median is fixed at 0, so that z_hat is a whole number.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.quantiles.requires_grad_(False)

    def forward(self, z_tilde_BNuv: Tensor) -> Tensor:
        """Compute the likelihood of each element, integrated over a unit interval around it."""
        values = z_tilde_BNuv.transpose(0, 1).reshape(self.channels, 1, -1)
        likelihood = self.likelihood_lower_bound(self._likelihood(values)[0])
        b, n, u, v = z_tilde_BNuv.shape
        out: Tensor = likelihood.reshape(n, b, u, v).transpose(0, 1)
        return out


class EntropyModel(nn.Module):
    """Hyperprior (arXiv 1802.01436, with means as in 1809.02736) over the gained latent, for training."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.hyper_analysis = HyperAnalysis(config)
        self.hyper_synthesis = HyperSynthesis(config)
        self.prior = FactorizedPrior(config.hyper_channels)
        self.gaussian = GaussianConditional(None)

    @torch.no_grad()
    def start(self, deviation_QM: Tensor) -> None:
        """Let scales start near the standard deviations of symbols, those of the middle quality."""
        index_M = index_of_scale(deviation_QM[len(deviation_QM) // 2].clamp(SCALE_MIN, SCALE_MAX))
        bias = self.hyper_synthesis.conv3.bias
        assert bias is not None
        bias[len(index_M) :] = (index_M - SCALE_INDEX_BIAS) / SCALE_INDEX_GAIN

    def forward(self, y_BMhw: Tensor, q_B: Tensor, u_y_BMhw: Tensor | None, u_z_BNuv: Tensor | None) -> LatentRate:
        """Estimate the rate with additive noise (training), or with rounding where the noise is None (evaluation)."""
        y_BMhw = y_BMhw.float()
        z_BNuv = self.hyper_analysis(y_BMhw)
        z_hat_BNuv = round_straight_through(z_BNuv)
        m_BMhw, index_BMhw = self.hyper_synthesis(z_hat_BNuv)
        y_hat_BMhw = round_straight_through(y_BMhw - m_BMhw) + m_BMhw
        z_rate_BNuv = z_hat_BNuv if u_z_BNuv is None else z_BNuv + u_z_BNuv
        y_rate_BMhw = y_hat_BMhw if u_y_BMhw is None else y_BMhw + u_y_BMhw
        p_z = self.prior(z_rate_BNuv)
        p_y = self.gaussian._likelihood(y_rate_BMhw, scale_of_index(index_BMhw), m_BMhw)
        p_y = self.gaussian.likelihood_lower_bound(p_y)
        bits_B = -(p_z.log2().flatten(1).sum(1) + p_y.log2().flatten(1).sum(1))
        return LatentRate(y_hat_BMhw, bits_B)

    @torch.no_grad()
    def freeze(self) -> EntropyTables:
        """Make range tables and the integer network of the weights as they are now."""
        tensors = {
            **table_tensors("z", *prior_tables(self.prior)),
            **table_tensors("y", *_gaussian_tables()),
            **self._integer_synthesis(),
        }
        return EntropyTables(tensors)

    def _integer_synthesis(self) -> dict[str, Tensor]:
        """H_s with what its forward pass does to the scale index."""
        h_s = self.hyper_synthesis
        half = h_s.conv3.out_channels // 2
        gain = torch.cat([torch.ones(half), torch.full((half,), SCALE_INDEX_GAIN)])
        shift = torch.cat([torch.zeros(half), torch.full((half,), SCALE_INDEX_BIAS)])
        return {
            **integer_conv("h_s.0", h_s.conv1, fraction_in=0), **integer_conv("h_s.1", h_s.conv2),
            **integer_conv("h_s.2", h_s.conv3, gain=gain, shift=shift),
        }  # fmt: skip


def prior_tables(prior: FactorizedPrior) -> tuple[Tensor, Tensor, Tensor]:
    support = torch.arange(-_PRIOR_RANGE, _PRIOR_RANGE + 1, dtype=torch.float32)
    device = next(prior.parameters()).device
    p = prior(support.expand(prior.channels, -1)[None, :, None].to(device))[0, :, 0].double().cpu()
    pmfs: list[Tensor] = []
    offsets: list[int] = []
    for p_channel in p:
        kept = (p_channel > _PRIOR_TAIL).nonzero()[:, 0].tolist() or [_PRIOR_RANGE]
        low, high = min(kept[0], _PRIOR_RANGE), max(kept[-1], _PRIOR_RANGE)
        pmfs.append(p_channel[low : high + 1])
        offsets.append(low - _PRIOR_RANGE)
    return row_tables(pmfs, offsets)


def _gaussian_tables() -> tuple[Tensor, Tensor, Tensor]:
    gaussian = GaussianConditional(None)
    gaussian.update_scale_table(scale_of_index(torch.arange(float(SCALE_LEVELS))).tolist())
    return gaussian.quantized_cdf, gaussian.cdf_length, gaussian.offset
