"""All randomness of a training sample, as a function of (seed, epoch, key) alone.

Shapes: x_BCHW crops in [-1, 1]; per-sample values [B].
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from corrdiff import diffusion
from corrdiff.config import HYPER_STRIDE, LATENT_STRIDE, QUALITIES, TransformConfig
from pipelines.train.batch import Batch


class Sample(NamedTuple):
    """A batch as the losses take it."""

    x_BCHW: Tensor
    w_B: Tensor
    q_B: Tensor
    """Quality levels."""
    t_B: Tensor
    """Diffusion times (`diffusion.training_time`)."""
    eps_BCHW: Tensor
    u_y_BMhw: Tensor
    """Quantisation noise of the latent, uniform in [-0.5, 0.5)."""
    u_z_BNuv: Tensor


def draw(batch: Batch, seed: int, crop: int, config: TransformConfig, device: torch.device) -> Sample:
    """Cut, flip and noise each crop by its own generator, which neither the worker nor the batch size can move."""
    rows = [
        _draw_one(batch.pixels_BHWC[i], generator_of(seed, batch.epoch, key), crop, config)
        for i, key in enumerate(batch.keys)
    ]
    x, q, t, eps, u_y, u_z = (torch.stack(column).to(device) for column in zip(*rows, strict=True))
    w_B = torch.from_numpy(batch.weight_B).to(device)
    x_BCHW = (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    return Sample(x_BCHW, w_B, q, t, eps, u_y, u_z)


def generator_of(seed: int, epoch: int, key: str) -> torch.Generator:
    """Give the generator of one crop in one epoch."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def _draw_one(
    pixels_HWC: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    generator: torch.Generator,
    crop: int,
    config: TransformConfig,
) -> tuple[Tensor, ...]:
    def integer(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    size = pixels_HWC.shape[0]
    top, left, flip = integer(size - crop + 1), integer(size - crop + 1), integer(2)
    window = pixels_HWC[top : top + crop, left : left + crop]
    x_CHW = torch.from_numpy(np.ascontiguousarray(window[:, ::-1] if flip else window)).permute(2, 0, 1)
    q = torch.randint(QUALITIES, (), generator=generator)
    t = diffusion.training_time(torch.rand((), generator=generator))
    eps = torch.randn((3, crop, crop), generator=generator)
    h, u = crop // LATENT_STRIDE, crop // HYPER_STRIDE
    u_y = torch.rand((config.latent_channels, h, h), generator=generator) - 0.5
    u_z = torch.rand((config.hyper_channels, u, u), generator=generator) - 0.5
    return x_CHW, q, t, eps, u_y, u_z


def micro_batches(sample: Sample, size: int) -> list[Sample]:
    """Cut a batch into equal parts for gradient accumulation."""
    count = len(sample.x_BCHW) // size
    columns = [torch.split(tensor, size) for tensor in sample]
    return [Sample(*(column[i] for column in columns)) for i in range(count)]
