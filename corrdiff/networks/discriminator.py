"""The discriminator of training: does the fine part of a picture look like that of a photograph? No codec holds it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdiff.config import LATENT_STRIDE
from corrdiff.networks.layers import ChannelNorm, conv3x3, laid_out

LATENT_FEATURES = 12
"""Channels that the latent is reduced to, as in HiFiC (arXiv 2006.09965)."""

SLOPE = 0.2
"""Of leaky ReLUs below 0."""


class Discriminator(nn.Module):
    """One verdict for each latent position, given the latent: pictures x_BCHW, y_BMhw -> logits [B, h, w].

    HiFiC's patch discriminator (arXiv 2006.09965) without its spectral normalisation, which keeps state between steps:
    layer normalisation at each position takes its place. The last layer starts at zero, so that it says nothing before
    it has learnt something.
    """

    def __init__(self, latent_channels: int, width: int) -> None:
        """`width` is that of the finest of the resolutions 1/2 to 1/16; each has twice that of the one before."""
        super().__init__()
        layers: list[nn.Module] = []
        channels, stride = 3, 1
        while stride < LATENT_STRIDE:
            layers.append(nn.Conv2d(channels, width * stride, 4, stride=2, padding=1))
            if stride > 1:  # the amplitude of texture is to be seen
                layers.append(ChannelNorm())
            layers.append(nn.LeakyReLU(SLOPE))
            channels, stride = width * stride, 2 * stride
        self.down = nn.Sequential(*layers)
        self.latents = conv3x3(latent_channels, LATENT_FEATURES)
        self.joint = conv3x3(channels + LATENT_FEATURES, channels)
        self.verdict = nn.Conv2d(channels, 1, 1, bias=False)
        nn.init.zeros_(self.verdict.weight)

    def forward(self, x_BCHW: Tensor, y_BMhw: Tensor) -> Tensor:
        features = torch.cat([self.down(laid_out(x_BCHW)), F.leaky_relu(self.latents(laid_out(y_BMhw)), SLOPE)], dim=1)
        logits_B1hw: Tensor = self.verdict(F.leaky_relu(self.joint(features), SLOPE))
        return logits_B1hw[:, 0].float()
