"""D: the privileged end-to-end decoder, y_hat / g_q at 1/16 -> picture in [-1, 1]."""

from __future__ import annotations

from torch import Tensor, nn

from corrdiff.config import TransformConfig
from corrdiff.networks.layers import ResidualBlock, Upsample, conv3x3, pixel_shuffle


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

    def forward(self, y_BMhw: Tensor) -> Tensor:
        return pixel_shuffle(self.layers(y_BMhw), self.patch)
