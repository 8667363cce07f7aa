"""The networks as coding runs them: on one device, in one arithmetic, their weights never changing.

Shapes: B batch, H W pixels, M latent channels, h w latent positions. Pictures are contiguous (arithmetic on them is
several times faster so), networks channels_last.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdiff.config import HYPER_STRIDE
from corrdiff.networks.model import CorrDiffModel

Precision = Literal["fp32", "bf16"]


class Networks:
    """A trained model on one device. Pictures go in and come out as float32 in [-1, 1]."""

    def __init__(self, model: CorrDiffModel, device: torch.device, precision: Precision) -> None:
        self.device = device
        self.precision: Precision = precision
        self.model = model.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        if precision == "bf16":
            _to_bf16(model.analysis, model.context, model.denoiser, model.decoder)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Have networks run in their arithmetic for the length of a block."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def gain(self, qualities: Sequence[float]) -> Tensor:
        """Give g_q of each picture, [B, M, 1, 1]."""
        g_BM11: Tensor = self.model.gain(torch.tensor(qualities, dtype=torch.float32, device=self.device))
        return g_BM11

    def analysis(self, x_BCHW: Tensor) -> Tensor:
        """Run E: y_BMhw before the gain, of pictures whose last row and column are repeated up to a multiple of 64."""
        height, width = x_BCHW.shape[2:]
        x_BCHW = F.pad(x_BCHW, (0, -width % HYPER_STRIDE, 0, -height % HYPER_STRIDE), mode="replicate")
        with self.autocast():
            y_BMhw: Tensor = self.model.analysis(x_BCHW.contiguous(memory_format=torch.channels_last))
        return y_BMhw

    def hyper_analysis(self, y_BMhw: Tensor) -> Tensor:
        """Run H_a, always in float32: z of gained latents, not rounded yet."""
        z_BNuv: Tensor = self.model.entropy.hyper_analysis(y_BMhw)
        return z_BNuv

    def privileged(self, y_hat_BMhw: Tensor, g_BM11: Tensor) -> Tensor:
        """Run D: the end-to-end decoder's picture of y_hat / g_q."""
        with self.autocast():
            d_BCHW: Tensor = self.model.decoder(y_hat_BMhw, g_BM11)
        return d_BCHW.float().contiguous().clamp_(-1, 1)

    def context(self, y_hat_BMhw: Tensor, d_BCHW: Tensor) -> list[Tensor]:
        """Compute what the score network sees of y_hat / g_q and D's picture, a map for each resolution."""
        with self.autocast():
            maps: list[Tensor] = self.model.context(y_hat_BMhw, d_BCHW)
        return maps

    def estimate(self, x_t_BCHW: Tensor, context: list[Tensor], t: float) -> Tensor:
        """Run the score network: its estimate of x_0 at time t."""
        t_B = torch.full((len(x_t_BCHW),), t, device=self.device)
        with self.autocast():
            xhat0_BCHW: Tensor = self.model.denoiser(x_t_BCHW, context, t_B)
        return xhat0_BCHW.float().contiguous().clamp_(-1, 1)


def _to_bf16(*networks: nn.Module) -> None:
    """Make of weights once what autocast would make of them at every use."""
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.to(torch.bfloat16)
