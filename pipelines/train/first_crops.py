"""The crops that networks start from, before any training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from corrdiff.config import LATENT_STRIDE
from pipelines.train.crops import Crops, read_some

FIRST_SHARDS = 8
"""From which the first crops are taken, where there are so many."""


def first_crops(crops: Crops, count: int) -> Tensor:
    """Read about that many crops of a dataset, from shards all over it: x_BCHW in [-1, 1], the same at each call.

    Their sides are cut to multiples of the latents' stride.

    Raises `JobError` where a shard is not the manifest's.
    """
    shards = crops.manifest.shards
    chosen = shards[:: -(-len(shards) // FIRST_SHARDS)]
    pixels_BHWC = np.stack(read_some(crops, chosen, count))
    side = pixels_BHWC.shape[1] // LATENT_STRIDE * LATENT_STRIDE
    return torch.from_numpy(pixels_BHWC[:, :side, :side]).permute(0, 3, 1, 2) / 127.5 - 1
