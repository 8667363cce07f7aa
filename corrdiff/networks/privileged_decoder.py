"""D: the privileged end-to-end decoder, y_hat / g_q at 1/16 -> picture in [-1, 1].

Shapes: M latent channels, h w latent positions, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdiff.config import TransformConfig
from corrdiff.networks.lapped import LappedSynthesis
from corrdiff.networks.layers import (
    BRANCH_INIT,
    ResidualBlock,
    Upsample,
    conv3x3,
    laid_out,
    pixel_shuffle,
    pixel_unshuffle,
)


class PrivilegedDecoder(nn.Module):
    """Mirror image of `AnalysisTransform`: y_BMhw -> x_BCHW."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.patch = config.patch
        channels = config.channels
        layers: list[nn.Module] = [conv3x3(config.latent_channels, channels[-1])]
        for i in range(len(channels) - 1, -1, -1):
            layers += [ResidualBlock(channels[i]) for _ in range(config.blocks)]
            if i > 0:
                layers.append(Upsample(channels[i], channels[i - 1]))
        layers.append(conv3x3(channels[0], 3 * config.patch**2))
        self.layers = nn.Sequential(*layers)

    def forward(self, y_BMhw: Tensor, g_BM11: Tensor) -> Tensor:
        """`g_BM11` is not looked at: see `LappedDecoder`."""
        return pixel_shuffle(self.layers(laid_out(y_BMhw)), self.patch)


class LappedDecoder(nn.Module):
    """The lapped synthesis of y_hat / g_q, and convolutions that add what it lacks.

    They see the symbols, how large a step between two of them is, and the linear picture itself.
    """

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        channels = config.channels
        self.patch = config.patch
        self.lapped = LappedSynthesis(config.latent_channels)
        layers: list[nn.Module] = [conv3x3(config.latent_channels + 1, channels[-1])]
        for i in range(len(channels) - 1, 0, -1):
            layers += [ResidualBlock(channels[i]) for _ in range(config.blocks)]
            layers.append(Upsample(channels[i], channels[i - 1]))
        self.layers = nn.Sequential(*layers)
        finest = channels[0]
        self.mix = conv3x3(finest + 3 * self.patch**2, finest)
        self.blocks = nn.Sequential(*[ResidualBlock(finest) for _ in range(config.blocks)])
        self.out = conv3x3(finest, 3 * self.patch**2)
        with torch.no_grad():
            self.out.weight.mul_(BRANCH_INIT)

    def forward(self, y_BMhw: Tensor, g_BM11: Tensor) -> Tensor:
        """Decode y_hat / g_q and g_q to a picture."""
        x_BCHW = laid_out(self.lapped(y_BMhw))
        s_BMhw = y_BMhw * g_BM11
        step_B1hw = g_BM11.log().mean(1, keepdim=True).expand(-1, -1, *y_BMhw.shape[2:])
        h = self.layers(laid_out(torch.cat([s_BMhw / (1 + s_BMhw.abs() / 4), step_B1hw], 1)))
        h = self.mix(torch.cat([h, pixel_unshuffle(x_BCHW, self.patch)], 1))
        picture_BCHW: Tensor = x_BCHW + pixel_shuffle(self.out(F.silu(self.blocks(h))), self.patch)
        return picture_BCHW
