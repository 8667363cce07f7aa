"""The score network f_theta(x_t, y_hat, t) -> estimate of x_0 (x-parameterisation)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdiff.config import DenoiserConfig
from corrdiff.networks.layers import (
    BRANCH_INIT,
    TimeEmbedding,
    TimeResidualBlock,
    Upsample,
    conv3x3,
    laid_out,
    pixel_shuffle,
    pixel_unshuffle,
)  # fmt: skip


class Denoiser(nn.Module):
    """U-Net over unshuffled pixels; a context map is concatenated at each resolution.

    x_t_BCHW, context maps (finest first), t_B in [0, 1] -> xhat0_BCHW.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.patch = config.patch
        channels, context = config.channels, config.map_channels
        time = config.time_channels
        self.time = TimeEmbedding(time)
        self.inp = conv3x3(3 * config.patch**2, channels[0])
        self.down_blocks = nn.ModuleList()
        self.downs = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        self.ups = nn.ModuleList()
        last = len(channels) - 1
        for i, c in enumerate(channels):
            first = TimeResidualBlock(c + context[i], c, time)
            rest = [TimeResidualBlock(c, c, time) for _ in range(config.blocks - 1)]
            self.down_blocks.append(nn.ModuleList([first, *rest]))
            if i < last:
                self.downs.append(conv3x3(c, channels[i + 1], stride=2))
        for i in range(last, -1, -1):
            c = channels[i]
            first = TimeResidualBlock(c if i == last else 2 * c, c, time)
            rest = [TimeResidualBlock(c, c, time) for _ in range(config.blocks - 1)]
            self.up_blocks.append(nn.ModuleList([first, *rest]))
            if i > 0:
                self.ups.append(Upsample(c, channels[i - 1]))
        self.out = conv3x3(channels[0], 3 * config.patch**2)
        self.sees_decoder = config.sees_decoder
        if config.sees_decoder:
            with torch.no_grad():
                self.out.weight.mul_(BRANCH_INIT)

    def forward(self, x_t_BCHW: Tensor, context: list[Tensor], t_B: Tensor) -> Tensor:
        emb_BT = self.time(t_B)
        h = self.inp(pixel_unshuffle(laid_out(x_t_BCHW), self.patch))
        skips: list[Tensor] = []
        for i, blocks in enumerate(self.down_blocks):
            h = torch.cat([h, context[i]], dim=1)
            for block in _blocks(blocks):
                h = block(h, emb_BT)
            if i < len(self.downs):
                skips.append(h)
                h = self.downs[i](h)
        for i, blocks in enumerate(self.up_blocks):
            if i > 0:
                h = torch.cat([self.ups[i - 1](h), skips.pop()], dim=1)
            for block in _blocks(blocks):
                h = block(h, emb_BT)
        out = self.out(F.silu(h))
        if self.sees_decoder:  # D's picture, the last channels of the finest map, is what is gone on from
            out = out + context[0][:, -out.shape[1] :]
        return pixel_shuffle(out, self.patch)


def _blocks(blocks: nn.Module) -> nn.ModuleList:
    assert isinstance(blocks, nn.ModuleList)
    return blocks
