"""Phase 2: D alone goes on, on the rounded latents that it will see at inference; everything else is frozen.

    loss = (1 - w) * MSE(D(y_hat / g_q), x_0) + w * LPIPS(D(y_hat / g_q), x_0)

The frozen networks and tables are an exported codec. They are not part of the module that DeepSpeed wraps, so no
optimizer, no partitioning and no checkpoint can touch them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corrdiff import losses
from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import load_codec, load_networks
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.networks.model import CorrDiffModel
from corrdiff.networks.privileged_decoder import LappedDecoder, PrivilegedDecoder
from corrdiff.perceptual import PerceptualLoss
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.phases.base import WHOLE, FirstCrops, replace_weights, start_codec
from pipelines.train.samples import Sample
from pipelines.train.schedule import Stretch


class Phase2:
    """The privileged decoder D alone trains, on a frozen codec."""

    name: PhaseName = "phase2"
    follows: PhaseName | None = "phase1"
    terms: tuple[str, ...] = ("loss", "mse_decoder", "lpips")

    def module(
        self, config: TrainConfig, device: torch.device, perceptual: PerceptualLoss | None,
        first_crops: FirstCrops | None = None,
    ) -> nn.Module:  # fmt: skip
        """Wrap D as it is in the start codec, beside that codec."""
        start = start_codec(self, config)
        codec = load_codec(start, device, config.precision)
        decoder = load_networks(start)[0].decoder
        return Phase2Module(codec, decoder, config.lpips_weight, perceptual)

    def group(self, parameter: str) -> str:
        """Give all weights one learning rate."""
        return WHOLE

    def stretches(self, config: TrainConfig) -> tuple[Stretch, ...]:
        """Train all the time as at the beginning."""
        return (Stretch(WHOLE, 1.0, {WHOLE: 1.0}, self.terms, noise=()),)

    def codec(self, config: TrainConfig, averaged: dict[str, Tensor]) -> tuple[CorrDiffModel, EntropyTables]:
        """Build the start codec with D replaced; its tables stay."""
        model, tables, _ = load_networks(start_codec(self, config))
        replace_weights(model, averaged)
        return model, tables


class Phase2Module(nn.Module):
    """What DeepSpeed wraps in phase 2: a batch -> loss terms of each sample, [B, len(Phase2.terms)]."""

    def __init__(
        self,
        codec: CorrDiffCodec,
        decoder: LappedDecoder | PrivilegedDecoder,
        lpips_weight: float = 0.0,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.lpips_weight = lpips_weight
        self._frozen = (codec, perceptual)  # in a tuple: not submodules

    def forward(self, sample: Sample, stretch: str, share: float) -> Tensor:
        """`stretch` and `share` are what every phase is given; here nothing depends on them."""
        codec, perceptual = self._frozen
        x = sample.x_BCHW
        with torch.no_grad():
            y_hat_BMhw, g_BM11 = codec.latents_of(x, sample.q_B)
        d_BCHW = self.decoder(y_hat_BMhw, g_BM11)
        mse_B = losses.squared_error(d_BCHW, x)
        lpips_B = losses.perceptual_or_zero(perceptual, d_BCHW, x)
        loss_B = (1 - self.lpips_weight) * mse_B + self.lpips_weight * lpips_B
        return torch.stack([loss_B, mse_B, lpips_B], dim=1)
