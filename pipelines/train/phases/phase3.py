"""Phase 3: the score network alone goes on, on the trajectory of a few steps that decoding will have it go.

    x_t = D(y_hat / g_q), noised to the time at which decoding starts;  S steps of DDIM -> xhat_0
    loss = (1 - w) * (MSE(coarse part) + f * MSE(fine part)) + w * LPIPS + v * texture error + a * (discriminator)

The gradient goes through all steps. In the coarse part the picture is to be right; in the fine part, which the latent
does not hold, it is to have the texture of the original and to look real to a patch discriminator that knows the latent
(HiFiC, arXiv 2006.09965). That it starts from the decoder's picture is RDEIC's (arXiv 2410.02640).

The frozen networks and tables are an exported codec and not part of the module, as in phase 2.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor, nn

from corrdiff import correction, diffusion, losses, texture
from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import load_codec, load_networks
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.networks.discriminator import Discriminator
from corrdiff.networks.model import CorrDiffModel
from corrdiff.perceptual import PerceptualLoss
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.phases.base import WHOLE, FirstCrops, replace_weights, start_codec
from pipelines.train.samples import Sample
from pipelines.train.schedule import Stretch

SCORE, DISCRIMINATOR = "score", "discriminator"
"""Names of the groups of weights."""

LR_SHARE = 0.1
"""Peak learning rate over the run's, of both groups: with the default that is HiFiC's 1e-4. The score network goes on
from where it is, and the two must not run away from each other."""


class Phase3:
    """The score network and the context that conditions it train, on a frozen codec, against a discriminator."""

    name: PhaseName = "phase3"
    follows: PhaseName | None = "phase2"
    terms: tuple[str, ...] = (
        "loss", "mse_coarse", "mse_fine", "texture", "adversarial", "discriminator", "lpips",
    )  # fmt: skip

    def module(
        self, config: TrainConfig, device: torch.device, perceptual: PerceptualLoss | None,
        first_crops: FirstCrops | None = None,
    ) -> nn.Module:  # fmt: skip
        """Wrap the score network as it is in the start codec and a new discriminator, beside that codec."""
        start = start_codec(self, config)
        codec, model = load_codec(start, device, config.precision), load_networks(start)[0]
        torch.manual_seed(config.seed)
        return Phase3Module(codec, model, config, perceptual)

    def group(self, parameter: str) -> str:
        """Tell the discriminator from the score network."""
        return DISCRIMINATOR if parameter.startswith("discriminator.") else SCORE

    def stretches(self, config: TrainConfig) -> tuple[Stretch, ...]:
        """Train both all the time."""
        peaks = {SCORE: LR_SHARE, DISCRIMINATOR: LR_SHARE}
        return (Stretch(WHOLE, 1.0, peaks, self.terms, noise=("eps_BCHW",)),)

    def codec(self, config: TrainConfig, averaged: dict[str, Tensor]) -> tuple[CorrDiffModel, EntropyTables]:
        """Build the start codec with the score network replaced, to be run with the steps that it was trained for."""
        model, tables, _ = load_networks(start_codec(self, config))
        replace_weights(model, {name: weight for name, weight in averaged.items() if self.group(name) == SCORE})
        steps = dataclasses.replace(model.config.diffusion, steps=config.steps)
        model.config = dataclasses.replace(model.config, diffusion=steps)
        return model, tables


class Phase3Module(nn.Module):
    """What DeepSpeed wraps in phase 3: a batch -> loss terms of each sample, [B, len(Phase3.terms)]."""

    def __init__(
        self, codec: CorrDiffCodec, model: CorrDiffModel, config: TrainConfig, perceptual: PerceptualLoss | None = None
    ) -> None:
        """Of `model` the score network is taken, to be trained; `codec` is what stays as it is."""
        super().__init__()
        self.context, self.denoiser = model.context, model.denoiser
        self.discriminator = Discriminator(
            model.config.transform.latent_channels, width=model.config.denoiser.channels[0] // 2
        )
        self.config = config
        self._frozen = (codec, perceptual)  # in a tuple: not submodules

    def forward(self, sample: Sample, stretch: str, share: float) -> Tensor:
        """`stretch` and `share` are what every phase is given; here nothing depends on them."""
        codec, perceptual = self._frozen
        config, x = self.config, sample.x_BCHW
        with torch.no_grad():
            y_hat_BMhw, g_BM11 = codec.latents_of(x, sample.q_B)
            d_BCHW = codec.networks.privileged(y_hat_BMhw, g_BM11)
        xhat_BCHW = self._decode(y_hat_BMhw, d_BCHW, sample.eps_BCHW)
        error_BCHW = x - xhat_BCHW
        coarse_BCHW = correction.coarse_part(error_BCHW)
        coarse_B, fine_B = (p.square().flatten(1).mean(1) for p in (coarse_BCHW, error_BCHW - coarse_BCHW))
        lpips_B = losses.perceptual_or_zero(perceptual, xhat_BCHW, x)
        texture_B = texture.texture_error(x, xhat_BCHW)
        adversarial_B, discriminator_B, both_B = self._judge(x, xhat_BCHW, y_hat_BMhw)
        w = config.lpips_weight
        loss_B = (1 - w) * (coarse_B + config.fine_weight * fine_B) + w * lpips_B
        loss_B = loss_B + config.texture_weight * texture_B + config.adversarial_weight * both_B
        return torch.stack([loss_B, coarse_B, fine_B, texture_B, adversarial_B, discriminator_B, lpips_B], dim=1)

    def _decode(self, y_hat_BMhw: Tensor, d_BCHW: Tensor, eps_BCHW: Tensor) -> Tensor:
        """Run the reverse process from D's noised picture, as decoding does where all factors are 0."""
        context = self.context(y_hat_BMhw, d_BCHW)
        start = self._frozen[0].config.diffusion.start
        t_B = torch.full((len(d_BCHW),), start, device=d_BCHW.device)
        x_t_BCHW = diffusion.add_noise(d_BCHW, eps_BCHW, t_B)
        for t, t_next in itertools.pairwise(diffusion.sampling_times(self.config.steps, start)):
            xhat_BCHW: Tensor = self.denoiser(x_t_BCHW, context, torch.full_like(t_B, t)).float()
            if t_next > 0:
                x_t_BCHW = diffusion.ddim_step(x_t_BCHW, xhat_BCHW.clamp(-1, 1), t, t_next)
        return xhat_BCHW

    def _judge(self, x_BCHW: Tensor, xhat_BCHW: Tensor, y_hat_BMhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Have the fine part judged -> the loss of the score network, that of the discriminator, and what trains both.

        There is one engine, so one backward pass and one step of Adam for the two, whose losses disagree. A detached
        picture gives the discriminator its gradient and the score network none. The score network's loss has to pass
        through the discriminator, and would train it to be fooled: the same loss of the detached picture, subtracted,
        has the same gradient there, so that nothing of it is left, and none anywhere else. This needs no second
        optimizer and no weights outside their layers, which ZeRO stage 3 has only while a layer runs.
        """
        real, made = (p - correction.coarse_part(p) for p in (x_BCHW, xhat_BCHW))
        pictures = torch.cat([real, made.detach(), made])
        logits = self.discriminator(pictures, torch.cat([y_hat_BMhw] * 3))
        real_Bhw, detached_Bhw, made_Bhw = logits.chunk(3)
        adversarial_B = losses.looks_real(made_Bhw)
        discriminator_B = losses.looks_real(real_Bhw) + losses.looks_made(detached_Bhw)
        return adversarial_B, discriminator_B, adversarial_B - losses.looks_real(detached_Bhw) + discriminator_B
