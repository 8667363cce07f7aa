"""Phase 1: everything trains, in three stretches of one run.

    transforms  beta_q * R + MSE(D, x_0)
    score       (1 - w) * v(t) * MSE(xhat0_t, x_0) + w * LPIPS(xhat0_t, x_0)
    together    the sum of both

First E, the entropy model and D learn to code, for as little as that costs; in the beginning the rate weight is ramped
up. Then the score network learns on latents that do not move: beside E from the beginning it would starve it, for at
low noise it needs no latent. At last each fits the others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from corrdiff import diffusion, losses
from corrdiff.codec_directory import load_networks
from corrdiff.config import HYPER_STRIDE, LATENT_STRIDE, preset
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.networks.model import CorrDiffModel, beta_of_quality
from corrdiff.perceptual import PerceptualLoss
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.phases.base import FirstCrops, codec_config
from pipelines.train.samples import NOISE, Noise, Sample
from pipelines.train.schedule import Stretch

TRANSFORMS, SCORE, TOGETHER = "transforms", "score", "together"
"""Names of the stretches; the first two are also those of the groups of weights that move in them. Both move in the
third."""

SCORE_NETWORKS = ("context", "denoiser")

LAPPED = "lapped"
"""The group of the lapped transforms, which are good from the start: at the others' learning rate they come apart."""

LAPPED_LR_SHARE = 0.2
"""Their learning rate over that of the other transforms."""

START_CROPS = 128
"""From which the lapped transforms are found; with 64 pixels a side that is 2,048 blocks."""

ROUNDING: tuple[Noise, ...] = ("u_y_BMhw", "u_z_BNuv")
"""Noise in the place of rounding."""

TOGETHER_LR_SHARE = 0.3
"""Peak learning rate of the last stretch over the run's, where others were before it: what is learnt is to stay."""


class Phase1:
    """All of a codec's networks train, from a codec's weights or from weights drawn by the seed."""

    name: PhaseName = "phase1"
    follows: PhaseName | None = None
    terms: tuple[str, ...] = ("loss", "bpp", "mse_decoder", "mse_score", "lpips")

    def module(
        self, config: TrainConfig, device: torch.device, perceptual: PerceptualLoss | None,
        first_crops: FirstCrops | None = None,
    ) -> nn.Module:  # fmt: skip
        """Wrap the networks at their start; the lapped transforms are those of the training pictures."""
        if config.init_from is not None:
            model = load_networks(config.init_from)[0]
        else:
            torch.manual_seed(config.seed)
            model = CorrDiffModel(preset(config.preset))
            if first_crops and model.config.transform.lapped:
                model.start_from(first_crops(START_CROPS), config.beta)
        return Phase1Module(model, config.beta, config.lpips_weight, perceptual)

    def group(self, parameter: str) -> str:
        """Tell the score network and the context that conditions it, and the lapped transforms, from the others."""
        if parameter.split(".")[1] in SCORE_NETWORKS:
            return SCORE
        return LAPPED if parameter in ("model.analysis.weight", "model.decoder.lapped.weight") else TRANSFORMS

    def stretches(self, config: TrainConfig) -> tuple[Stretch, ...]:
        """Train the transforms, then the score network, then both."""
        rest = 1.0 - config.transforms_share - config.score_share
        peak = TOGETHER_LR_SHARE if rest < 1 else 1.0
        transforms = {TRANSFORMS: 1.0, LAPPED: LAPPED_LR_SHARE}
        together = {TRANSFORMS: peak, LAPPED: peak * LAPPED_LR_SHARE, SCORE: peak}
        return (
            Stretch(TRANSFORMS, config.transforms_share, transforms, ("loss", "bpp", "mse_decoder"), ROUNDING),
            Stretch(SCORE, config.score_share, {SCORE: 1.0}, ("loss", "bpp", "mse_score", "lpips"), NOISE),
            Stretch(TOGETHER, rest, together, self.terms, NOISE),
        )

    def codec(self, config: TrainConfig, averaged: dict[str, Tensor]) -> tuple[CorrDiffModel, EntropyTables]:
        """Build the codec of the averages alone, with tables that are frozen anew."""
        weights = {name.removeprefix("model."): value for name, value in averaged.items()}
        model = CorrDiffModel.around(codec_config(config), weights)
        return model, model.entropy.freeze()


class Phase1Module(nn.Module):
    """What DeepSpeed wraps in phase 1: a batch -> loss terms of each sample, [B, len(Phase1.terms)]."""

    def __init__(
        self,
        model: CorrDiffModel,
        beta: float,
        lpips_weight: float = 0.0,
        perceptual: PerceptualLoss | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.beta_Q = beta_of_quality(beta)
        self.lpips_weight = lpips_weight
        self._perceptual = (perceptual,)  # in a tuple: its weights are not this module's to train or save

    def forward(self, sample: Sample, stretch: str, share: float) -> Tensor:
        """`share` is what is done of the stretch."""
        x = sample.x_BCHW
        mse_d_B = mse_x_B = lpips_B = torch.zeros(len(x), device=x.device)
        if stretch == SCORE:
            # Before the pass without gradients: autocast keeps the weights that it has cast, and ZeRO stage 3 finds
            # their gradients only if that was in a pass with them.
            loss_B = self._nothing_of_transforms(sample)
        with torch.set_grad_enabled(stretch != SCORE):
            y_hat_BMhw, g_BM11, bits_B = self._code(sample)
            d_BCHW = self.model.decoder(y_hat_BMhw, g_BM11)
        bpp_B = bits_B / (x.shape[2] * x.shape[3])
        if stretch != SCORE:
            beta_B = torch.tensor(self.beta_Q, device=x.device)[sample.q_B]
            mse_d_B = losses.squared_error(d_BCHW, x)
            loss_B = beta_B * bpp_B + mse_d_B
        if stretch == TRANSFORMS:
            loss_B = loss_B + self._nothing_of_score(sample, y_hat_BMhw, d_BCHW.detach())
        else:
            xhat0_BCHW = self._estimate(sample, y_hat_BMhw, d_BCHW.detach())
            mse_x_B = losses.squared_error(xhat0_BCHW, x)
            lpips_B = losses.perceptual_or_zero(self._perceptual[0], xhat0_BCHW, x)
            w = self.lpips_weight
            loss_B = loss_B + (1 - w) * losses.time_weight(sample.t_B) * mse_x_B + w * lpips_B
        return torch.stack([loss_B, bpp_B, mse_d_B, mse_x_B, lpips_B], dim=1)

    def _code(self, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
        """Give the latents as D and the score network take them, y_hat / g_q, then g_q, and their bits, [B]."""
        y_BMhw, g_BM11 = self.model.latent(sample.x_BCHW, sample.q_B)
        with torch.autocast(sample.x_BCHW.device.type, enabled=False):
            latents = self.model.entropy(y_BMhw, sample.q_B, sample.u_y_BMhw, sample.u_z_BNuv)
        return latents.y_hat_BMhw / g_BM11, g_BM11, latents.bits_B

    def _estimate(self, sample: Sample, y_hat_BMhw: Tensor, d_BCHW: Tensor) -> Tensor:
        """Estimate the picture by the score network: xhat0_t."""
        x_t_BCHW = diffusion.add_noise(sample.x_BCHW, sample.eps_BCHW, sample.t_B)
        xhat0_BCHW: Tensor = self.model.denoiser(x_t_BCHW, self.model.context(y_hat_BMhw, d_BCHW), sample.t_B)
        return xhat0_BCHW

    # What stands still is passed through on a corner of one crop, for a loss of zero: each weight has a gradient of
    # zeros, so that Adam counts the same steps for all of them and no ZeRO stage takes up an older gradient.

    def _nothing_of_transforms(self, sample: Sample) -> Tensor:
        y_hat_BMhw, g_BM11, bits_B = self._code(_corner(sample))
        nothing: Tensor = 0.0 * (self.model.decoder(y_hat_BMhw, g_BM11).float().mean() + bits_B.mean())
        return nothing

    def _nothing_of_score(self, sample: Sample, y_hat_BMhw: Tensor, d_BCHW: Tensor) -> Tensor:
        pixels, latents = HYPER_STRIDE, HYPER_STRIDE // LATENT_STRIDE
        corner = y_hat_BMhw[:1, :, :latents, :latents].detach(), d_BCHW[:1, :, :pixels, :pixels]
        return 0.0 * self._estimate(_corner(sample), *corner).float().mean()


def _corner(sample: Sample) -> Sample:
    """Cut the smallest crop out of the first one."""
    corner = Sample(*(tensor[:1] for tensor in sample))
    pixels, latents = HYPER_STRIDE, HYPER_STRIDE // LATENT_STRIDE
    return corner._replace(
        x_BCHW=corner.x_BCHW[:, :, :pixels, :pixels], eps_BCHW=corner.eps_BCHW[:, :, :pixels, :pixels],
        u_y_BMhw=corner.u_y_BMhw[:, :, :latents, :latents], u_z_BNuv=corner.u_z_BNuv[:, :, :1, :1],
    )  # fmt: skip
