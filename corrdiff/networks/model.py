"""All networks of the codec in one module, as they are trained and exported.

Shapes: B batch, C channels, H W pixels, M latent channels, h w latent positions, Q quality levels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from corrdiff.config import QUALITIES, CodecConfig, TransformConfig
from corrdiff.networks.denoiser import Denoiser
from corrdiff.networks.privileged_decoder import PrivilegedDecoder
from corrdiff.networks.transforms import AnalysisTransform, ContextSynthesis, HyperAnalysis

if TYPE_CHECKING:
    from corrdiff.networks.context_model import ContextEntropyModel
    from corrdiff.networks.entropy_model import EntropyModel

BETA_SPREAD = 27.0
"""beta of the lowest quality over beta of the highest: the span of the rate weights that compressai trains for its
eight qualities (0.0018 to 0.0483), all of which one model covers here."""


def beta_of_quality(beta: float) -> list[float]:
    """Give the rate weight of each quality level, geometrically spaced around `beta`."""
    return [beta * BETA_SPREAD ** (0.5 - q / (QUALITIES - 1)) for q in range(QUALITIES)]


class QualityGain(nn.Module):
    """g_q: a learned positive gain for each quality level and latent channel, q_B -> [B, M, 1, 1].

    Between two levels its logarithm is interpolated. It starts where uniform quantisation at high rate would put it:
    step size proportional to sqrt(beta).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        start_Q = torch.tensor([-0.5 * math.log(b) for b in beta_of_quality(1.0)])
        self.log_gain_QM = nn.Parameter(start_Q[:, None].repeat(1, channels))

    def forward(self, q_B: Tensor) -> Tensor:
        below_B = q_B.long()
        part_B1 = (q_B - below_B).to(self.log_gain_QM.dtype)[:, None]
        above_B = (below_B + 1).clamp(max=len(self.log_gain_QM) - 1)
        log_gain_BM = torch.lerp(self.log_gain_QM[below_B], self.log_gain_QM[above_B], part_B1)
        return log_gain_BM.exp()[:, :, None, None]


class HyperEncoder(nn.Module):
    """What coding needs of the entropy model: the rest of it is in the tables."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.hyper_analysis = HyperAnalysis(config)


def _entropy_model(config: TransformConfig) -> EntropyModel | ContextEntropyModel:
    from corrdiff.networks.context_model import ContextEntropyModel  # compressai takes seconds to import
    from corrdiff.networks.entropy_model import EntropyModel

    return ContextEntropyModel(config) if config.slices else EntropyModel(config)


class CorrDiffModel(nn.Module):
    """E, the entropy model, context and score network, and D."""

    def __init__(self, config: CodecConfig, for_training: bool = True) -> None:
        """A model that is not for training has of the entropy model only H_a."""
        super().__init__()
        self.config = config
        self.analysis = AnalysisTransform(config.transform)
        self.gain = QualityGain(config.transform.latent_channels)
        entropy = _entropy_model(config.transform) if for_training else HyperEncoder(config.transform)
        self.entropy = cast("EntropyModel | ContextEntropyModel", entropy)
        self.context = ContextSynthesis(config.transform.latent_channels, config.denoiser)
        self.denoiser = Denoiser(config.denoiser)
        self.decoder = PrivilegedDecoder(config.transform)

    def latent(self, x_BCHW: Tensor, q_B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute y = g_q * E(x), and g_q itself; x is padded to a multiple of 64."""
        g_BM11 = self.gain(q_B)
        return self.analysis(x_BCHW).float() * g_BM11, g_BM11
