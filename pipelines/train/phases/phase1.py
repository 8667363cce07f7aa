"""Phase 1: everything trains. Rate, D's distortion and the score network's, together.

    loss = beta_q * R + MSE(D, x_0) + (1 - w) * v(t) * MSE(xhat0_t, x_0) + w * LPIPS(xhat0_t, x_0)

In the warm-up the rate weight is ramped up and the latent is detached before the score network, so that E first learns
an ordinary rate-distortion autoencoder: at low noise the score network needs no latent and would starve it. In the
first half of the warm-up the score network has no part at all, which makes that half about twice as fast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corrdiff import diffusion, losses
from corrdiff.codec_directory import load_networks
from corrdiff.config import HYPER_STRIDE, LATENT_STRIDE, preset
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.networks.layers import recompute_blocks
from corrdiff.networks.model import CorrDiffModel, beta_of_quality
from corrdiff.perceptual import PerceptualLoss
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.phases.base import codec_config, replace_weights
from pipelines.train.samples import Sample

RATE_RAMP_SHARE = 0.6
"""The rate weight reaches its full value at this share of the warm-up."""

SCORE_FROM_SHARE = 0.5
"""The score network begins at this share of the warm-up."""


class Phase1:
    """All of a codec's networks train, from a codec's weights or from weights drawn by the seed."""

    name: PhaseName = "phase1"
    follows: PhaseName | None = None
    terms: tuple[str, ...] = ("loss", "bpp", "mse_decoder", "mse_score", "lpips")

    def module(self, config: TrainConfig, device: torch.device, perceptual: PerceptualLoss | None) -> nn.Module:
        """Wrap the networks at their start."""
        if config.init_from is not None:
            model = load_networks(config.init_from)[0]
        else:
            torch.manual_seed(config.seed)
            model = CorrDiffModel(preset(config.preset))
        return Phase1Module(model, config.beta, config.lpips_weight, perceptual, config.checkpoints_activations)

    def terms_at(self, warmup: float) -> tuple[str, ...]:
        """Name the terms of that time: the score network's come later than the others."""
        return tuple(t for t in self.terms if warmup >= SCORE_FROM_SHARE or t not in ("mse_score", "lpips"))

    def codec(self, config: TrainConfig, averaged: dict[str, Tensor]) -> tuple[CorrDiffModel, EntropyTables]:
        """Build the codec of the averages alone, with tables that are frozen anew."""
        model = CorrDiffModel(codec_config(config))
        replace_weights(model, {name.removeprefix("model."): value for name, value in averaged.items()})
        return model, model.entropy.freeze()


class Phase1Module(nn.Module):
    """What DeepSpeed wraps in phase 1: a batch -> loss terms of each sample, [B, len(Phase1.terms)]."""

    def __init__(
        self,
        model: CorrDiffModel,
        beta: float,
        lpips_weight: float = 0.0,
        perceptual: PerceptualLoss | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        if checkpoint_activations:
            recompute_blocks(model)
        self.beta_Q = beta_of_quality(beta)
        self.lpips_weight = lpips_weight
        self._perceptual = (perceptual,)  # in a tuple: its weights are not this module's to train or save

    def forward(self, sample: Sample, warmup: float) -> Tensor:
        """`warmup` is the share of the warm-up that is done; 1 from its end on."""
        x = sample.x_BCHW
        y_BMhw, g_BM11 = self.model.latent(x, sample.q_B)
        with torch.autocast(x.device.type, enabled=False):
            latents = self.model.entropy(y_BMhw, sample.q_B, sample.u_y_BMhw, sample.u_z_BNuv)
        y_hat_BMhw = latents.y_hat_BMhw / g_BM11
        d_BCHW = self.model.decoder(y_hat_BMhw, g_BM11)
        bpp_B = latents.bits_B / (x.shape[2] * x.shape[3])
        beta_B = torch.tensor(self.beta_Q, device=x.device)[sample.q_B] * min(1.0, warmup / RATE_RAMP_SHARE)
        mse_d_B = losses.squared_error(d_BCHW, x)
        if warmup < SCORE_FROM_SHARE:
            mse_x_B = lpips_B = self._nothing(sample, y_hat_BMhw).expand(len(x))
        else:
            xhat0_BCHW = self._estimate(sample, y_hat_BMhw if warmup >= 1 else y_hat_BMhw.detach())
            mse_x_B = losses.squared_error(xhat0_BCHW, x)
            lpips_B = losses.perceptual_or_zero(self._perceptual[0], xhat0_BCHW, x)
        w = self.lpips_weight
        loss_B = beta_B * bpp_B + mse_d_B + (1 - w) * losses.time_weight(sample.t_B) * mse_x_B + w * lpips_B
        return torch.stack([loss_B, bpp_B, mse_d_B, mse_x_B, lpips_B], dim=1)

    def _estimate(self, sample: Sample, y_hat_BMhw: Tensor) -> Tensor:
        """Estimate the picture by the score network: xhat0_t."""
        x_t_BCHW = diffusion.add_noise(sample.x_BCHW, sample.eps_BCHW, sample.t_B)
        xhat0_BCHW: Tensor = self.model.denoiser(x_t_BCHW, self.model.context(y_hat_BMhw), sample.t_B)
        return xhat0_BCHW

    def _nothing(self, sample: Sample, y_hat_BMhw: Tensor) -> Tensor:
        """Give zero, by a small pass through the score network: every weight then has a gradient in every step, so that
        all ZeRO stages and Adam count the same steps for all of them."""
        side = HYPER_STRIDE // LATENT_STRIDE
        context = self.model.context(y_hat_BMhw[:1, :, :side, :side].detach())
        noise_BCHW = sample.eps_BCHW[:1, :, :HYPER_STRIDE, :HYPER_STRIDE]
        nothing: Tensor = 0.0 * self.model.denoiser(noise_BCHW, context, sample.t_B[:1]).float().mean()
        return nothing
