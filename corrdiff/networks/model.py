"""All networks of the codec in one module, as they are trained and exported.

Shapes: B batch, C channels, H W pixels, M latent channels, h w latent positions, Q quality levels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from corrdiff.config import QUALITIES, CodecConfig, TransformConfig
from corrdiff.networks import lapped
from corrdiff.networks.denoiser import Denoiser
from corrdiff.networks.lapped import LappedAnalysis
from corrdiff.networks.privileged_decoder import LappedDecoder, PrivilegedDecoder
from corrdiff.networks.transforms import AnalysisTransform, ContextSynthesis, HyperAnalysis

if TYPE_CHECKING:
    from collections.abc import Mapping

    from corrdiff.networks.context_model import ContextEntropyModel
    from corrdiff.networks.entropy_model import EntropyModel

BETA_SPREAD = 200.0
"""beta of the lowest quality over beta of the highest: what takes photographs from about 0.05 to 1 bpp."""

STEP_OF_BETA = 26.0
"""A uniform quantiser of step s has the best rate for its error at high rate where s**2 is that times beta: three
orthonormal coefficients a pixel, an error of s**2 / 12 in each, and log2 s bits."""


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
        transform = config.transform
        self.analysis = LappedAnalysis(transform.latent_channels) if transform.lapped else AnalysisTransform(transform)
        self.gain = QualityGain(transform.latent_channels)
        entropy = _entropy_model(transform) if for_training else HyperEncoder(transform)
        self.entropy = cast("EntropyModel | ContextEntropyModel", entropy)
        self.context = ContextSynthesis(transform.latent_channels, config.denoiser)
        self.denoiser = Denoiser(config.denoiser)
        self.decoder = LappedDecoder(transform) if transform.lapped else PrivilegedDecoder(transform)

    @classmethod
    def around(cls, config: CodecConfig, weights: Mapping[str, Tensor], for_training: bool = True) -> CorrDiffModel:
        """Build the networks around weights that are there, which become their parameters: none is drawn first, which
        takes the large ones seconds.

        Of the entropy model those may be missing that are never trained; of all else each must be there.
        """
        with torch.device("meta"):
            model = cls(config, for_training=False)
        if for_training:
            model.entropy = _entropy_model(config.transform)  # small, and with constants beside its weights
        _, unknown = model.load_state_dict(weights, strict=False, assign=True)
        missing = [name for name, p in model.named_parameters() if p.is_meta]
        assert not unknown and not missing, (unknown, missing)
        return model

    @torch.no_grad()
    def start_from(self, x_BCHW: Tensor, beta: float) -> None:
        """Set the lapped transforms, the gains and the scales of the entropy model to what training pictures ask for.

        Args:
            x_BCHW: some of them, in [-1, 1], whose sides are multiples of 16.
            beta: rate weight of the middle quality, as for `beta_of_quality`.
        """
        assert isinstance(self.analysis, LappedAnalysis) and isinstance(self.decoder, LappedDecoder)
        weight, deviation_M = lapped.basis(x_BCHW, self.config.transform.latent_channels)
        self.analysis.weight.copy_(weight)
        self.decoder.lapped.weight.copy_(weight)
        step_Q1 = (STEP_OF_BETA * torch.tensor(beta_of_quality(beta))).sqrt()[:, None]
        self.gain.log_gain_QM.copy_(-step_Q1.log().expand_as(self.gain.log_gain_QM))
        self.entropy.start(deviation_M.cpu() / step_Q1)

    def latent(self, x_BCHW: Tensor, q_B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute y = g_q * E(x), and g_q itself; x is padded to a multiple of 64."""
        g_BM11 = self.gain(q_B)
        return self.analysis(x_BCHW).float() * g_BM11, g_BM11
