"""Pixels to latents and back up to context features.

Shapes: x_BCHW picture in [-1, 1]; y_BMhw latent at 1/16; z_BNuv hyperlatent at 1/64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdiff.config import DenoiserConfig, TransformConfig
from corrdiff.networks.layers import ResidualBlock, Upsample, conv3x3, laid_out, pixel_shuffle, pixel_unshuffle

LATENT_GAIN = 4.0
"""E's output is multiplied by this, so that at initialisation the symbols are not all zero."""

SCALE_INDEX_GAIN = 8.0
SCALE_INDEX_BIAS = 22.0
"""H_s gives a position in the scale table; these put it near sigma = 1 at initialisation (see entropy_model.py)."""


class AnalysisTransform(nn.Module):
    """E: x_BCHW -> y_BMhw, before the gain of the quality level."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.patch = config.patch
        layers: list[nn.Module] = [conv3x3(3 * config.patch**2, config.channels[0])]
        for i, channels in enumerate(config.channels):
            if i > 0:
                layers.append(conv3x3(config.channels[i - 1], channels, stride=2))
            layers += [ResidualBlock(channels) for _ in range(config.blocks)]
        layers.append(conv3x3(config.channels[-1], config.latent_channels))
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.layers(pixel_unshuffle(x_BCHW, self.patch)) * LATENT_GAIN
        return out


class HyperAnalysis(nn.Module):
    """H_a: y_BMhw -> z_BNuv."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        n = config.hyper_channels
        self.companded = bool(config.slices)
        self.layers = nn.Sequential(
            conv3x3(config.latent_channels * (2 if self.companded else 1), n),
            nn.ReLU(),
            conv3x3(n, n, stride=2),
            nn.ReLU(),
            conv3x3(n, n, stride=2),
        )

    def forward(self, y_BMhw: Tensor) -> Tensor:
        if self.companded:  # sizes over several powers of two, as the scales that they are to say
            size = y_BMhw.abs()
            y_BMhw = torch.cat([torch.log1p(size), y_BMhw / (1 + size)], 1)
        out: Tensor = self.layers(laid_out(y_BMhw))
        return out


class HyperFeatures(nn.Module):
    """H_s for a context: z_hat_BNuv -> features [B, C, h, w], none below 0. Convolutions, ReLU and pixel shuffles."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        n = config.hyper_channels
        self.conv1 = conv3x3(n, 4 * n)
        self.conv2 = conv3x3(n, 4 * n)
        self.conv3 = conv3x3(n, config.context_channels)

    def forward(self, z_hat_BNuv: Tensor) -> Tensor:
        h = F.relu(pixel_shuffle(self.conv1(laid_out(z_hat_BNuv)), 2))
        h = F.relu(pixel_shuffle(self.conv2(h), 2))
        return F.relu(self.conv3(h))


class HyperSynthesis(nn.Module):
    """H_s: z_hat_BNuv -> (m_BMhw, scale_index_BMhw).

    Convolutions, ReLU and pixel shuffles only: at export it becomes exact integer arithmetic
    (`entropy_model.IntegerHyperSynthesis`).
    """

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        n = config.hyper_channels
        self.conv1 = conv3x3(n, 4 * n)
        self.conv2 = conv3x3(n, 4 * n)
        self.conv3 = conv3x3(n, 2 * config.latent_channels)

    def forward(self, z_hat_BNuv: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(pixel_shuffle(self.conv1(laid_out(z_hat_BNuv)), 2))
        h = F.relu(pixel_shuffle(self.conv2(h), 2))
        m_BMhw, index_BMhw = self.conv3(h).chunk(2, dim=1)
        return m_BMhw, index_BMhw * SCALE_INDEX_GAIN + SCALE_INDEX_BIAS


class ContextSynthesis(nn.Module):
    """What the score network is told: the latent, upsampled to a feature map for each of its resolutions, and at the
    finest, where it is made so, D's picture beside it.

    y_hat / g_q at 1/16, D's picture -> list of maps, finest (1/patch) first.
    """

    def __init__(self, latent_channels: int, config: DenoiserConfig) -> None:
        super().__init__()
        channels = config.context_channels
        self.picture_patch = config.patch if config.sees_decoder else 0
        self.inp = conv3x3(latent_channels, channels[-1])
        self.blocks = nn.ModuleList(
            nn.Sequential(*[ResidualBlock(c) for _ in range(config.blocks)]) for c in reversed(channels)
        )
        self.ups = nn.ModuleList(Upsample(channels[i], channels[i - 1]) for i in range(len(channels) - 1, 0, -1))

    def forward(self, y_BMhw: Tensor, d_BCHW: Tensor) -> list[Tensor]:
        h = self.blocks[0](self.inp(laid_out(y_BMhw)))
        maps = [h]
        for up, block in zip(self.ups, list(self.blocks)[1:], strict=True):
            h = block(up(h))
            maps.append(h)
        if self.picture_patch:
            maps[-1] = torch.cat([maps[-1], pixel_unshuffle(laid_out(d_BCHW), self.picture_patch).to(h.dtype)], 1)
        return maps[::-1]
