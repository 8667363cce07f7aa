"""What one more crop in a step takes: operations, and memory for what the backward pass needs.

Both are counted on the smallest crops, the networks being convolutions: they grow with the area.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from corrdiff.config import HYPER_STRIDE, TransformConfig
from pipelines.train import samples
from pipelines.train.batch import Batch
from pipelines.train.epoch_order import Cursor
from pipelines.train.samples import Sample


def flops_per_crop(
    module: nn.Module, transform: TransformConfig, crop: int, stretch: str, device: torch.device
) -> float:
    """Count the operations of a forward and a backward pass over one more crop, recomputation of activations
    included."""
    one, two = (_flops(module, _blank(count, transform, device), stretch) for count in (1, 2))
    return (two - one) * (crop / HYPER_STRIDE) ** 2


def activation_bytes_per_crop(
    module: nn.Module, transform: TransformConfig, crop: int, stretch: str, device: torch.device
) -> float:
    """Count the bytes of one more crop that are kept from the forward pass for the backward pass; in the precision of
    torch's autocast where that is on."""
    one, two = (_kept_bytes(module, _blank(count, transform, device), stretch) for count in (1, 2))
    return (two - one) * (crop / HYPER_STRIDE) ** 2


def _blank(count: int, transform: TransformConfig, device: torch.device) -> Sample:
    """Draw some of the smallest crops."""
    blank = np.zeros((count, HYPER_STRIDE, HYPER_STRIDE, 3), np.uint8)
    batch = Batch(0, ["blank"] * count, blank, np.ones(count, np.float32), count, Cursor(0, 0), 0)
    return samples.draw(batch, 0, HYPER_STRIDE, transform, device)


def _flops(module: nn.Module, sample: Sample, stretch: str) -> float:
    # Apart from training: under the counter some operations run in another form, with other last bits.
    with FlopCounterMode(display=False) as counter:
        module(sample, stretch, 1.0)[:, 0].sum().backward()
    module.zero_grad(set_to_none=True)
    return float(counter.get_total_flops())


def _kept_bytes(module: nn.Module, sample: Sample, stretch: str) -> int:
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # once, however many layers keep it or a view of it
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(sample, stretch, 1.0)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
