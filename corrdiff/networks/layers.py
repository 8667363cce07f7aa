"""Building blocks of all networks. Shapes: B batch, C channels, H W height and width.

Everything is local (no attention, no statistics over the picture), so that a network trained on crops treats a
large picture, or a tile of it, as it treated the crop.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

RESIDUAL_INIT = 0.1
"""The last convolution of a residual branch starts this much smaller, so that deep stacks start near the identity
(as in Fixup, arXiv 1901.09321) and train without normalisation."""

BRANCH_INIT = 0.1
"""The last convolution of what is added to a linear transform starts this much smaller."""


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    """Make a 3x3 convolution, zero-padded."""
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1)


def _residual_conv(channels: int) -> nn.Conv2d:
    conv = conv3x3(channels, channels)
    with torch.no_grad():
        conv.weight.mul_(RESIDUAL_INIT)
    return conv


class ResidualBlock(nn.Module):
    """x + conv(act(conv(act(x)))): no normalisation, as compression transforms need amplitudes kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels)
        self.conv2 = _residual_conv(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(x_BCHW))
        out: Tensor = x_BCHW + self.conv2(F.silu(h_BCHW))
        return out


def pixel_shuffle(x_BCHW: Tensor, factor: int) -> Tensor:
    """Move channels into space, [B, factor**2 * C, H, W] -> [B, C, factor * H, factor * W], in the layout of the input.

    On a GPU torch's own gives up channels_last, and every layer behind it would run in the other layout.
    """
    if not _loses_layout(x_BCHW):
        return F.pixel_shuffle(x_BCHW, factor)
    batch, channels, height, width = x_BCHW.shape
    x_BHWCrs = x_BCHW.permute(0, 2, 3, 1).reshape(batch, height, width, channels // factor**2, factor, factor)
    out_BHWC = x_BHWCrs.permute(0, 1, 4, 2, 5, 3).reshape(batch, height * factor, width * factor, -1)
    return out_BHWC.permute(0, 3, 1, 2)


def pixel_unshuffle(x_BCHW: Tensor, factor: int) -> Tensor:
    """Move space into channels, the inverse of `pixel_shuffle`, in the layout of the input."""
    if not _loses_layout(x_BCHW):
        return F.pixel_unshuffle(x_BCHW, factor)
    batch, channels, height, width = (s // f for s, f in zip(x_BCHW.shape, (1, 1, factor, factor), strict=True))
    x_BHrWsC = x_BCHW.permute(0, 2, 3, 1).reshape(batch, height, factor, width, factor, channels)
    return x_BHrWsC.permute(0, 1, 3, 5, 2, 4).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def laid_out(x_BCHW: Tensor) -> Tensor:
    """On a GPU, give a tensor in channels_last, in which convolutions there are fastest; on a CPU as it is.

    For what convolutions are given: joined or cut tensors, noise and latents may be laid out otherwise.
    """
    return x_BCHW if x_BCHW.device.type == "cpu" else x_BCHW.contiguous(memory_format=torch.channels_last)


def _loses_layout(x_BCHW: Tensor) -> bool:
    return x_BCHW.device.type != "cpu" and x_BCHW.is_contiguous(memory_format=torch.channels_last)


class Upsample(nn.Module):
    """Twice the resolution by sub-pixel convolution (arXiv 1609.05158)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = conv3x3(c_in, 4 * c_out)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return pixel_shuffle(self.conv(x_BCHW), 2)


class ChannelNorm(nn.Module):
    """Layer normalisation over channels at each position, with scale and shift left to the caller."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.layer_norm(x_BCHW.permute(0, 2, 3, 1), (x_BCHW.shape[1],)).permute(0, 3, 1, 2)


class TimeResidualBlock(nn.Module):
    """Residual block of the score network: channel norm, scaled and shifted by the time embedding."""

    def __init__(self, c_in: int, c_out: int, time_channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm()
        self.conv1 = conv3x3(c_in, c_out)
        self.film = nn.Linear(time_channels, 2 * c_out)
        self.conv2 = _residual_conv(c_out)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x_BCHW: Tensor, emb_BT: Tensor) -> Tensor:
        h_BCHW = self.conv1(F.silu(self.norm(x_BCHW)))
        scale_BC, shift_BC = self.film(emb_BT).chunk(2, dim=1)
        h_BCHW = self.norm(h_BCHW) * (1 + scale_BC[:, :, None, None]) + shift_BC[:, :, None, None]
        out: Tensor = self.skip(x_BCHW) + self.conv2(F.silu(h_BCHW))
        return out


class TimeEmbedding(nn.Module):
    """Continuous time in [0, 1] to a vector: sinusoids, then a two-layer perceptron."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, t_B: Tensor) -> Tensor:
        half = self.channels // 2
        frequency = torch.exp(torch.linspace(0.0, math.log(1000.0), half, device=t_B.device))
        angle_BF = t_B.float()[:, None] * frequency[None]
        out: Tensor = F.silu(self.mlp(torch.cat([angle_BF.sin(), angle_BF.cos()], dim=1)))
        return out


def recompute_blocks(module: nn.Module) -> None:
    """Keep no activations inside residual blocks for the backward pass; compute them again there (arXiv 1604.06174)."""
    for block in module.modules():
        if isinstance(block, ResidualBlock | TimeResidualBlock):
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
