"""LPIPS (arXiv 1801.03924), where the weights of its backbone are at hand: as a loss, and as a map to fit factors with.

Shapes: x_BCHW pictures in [-1, 1].
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdiff import pretrained
from corrdiff.errors import UsageError
from corrdiff.pretrained import ALEXNET, VGG16

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pictures -> the distance of each pair, [B]."""

PerceptualMap = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pictures -> how far they are from each other at each pixel, [B, 1, H, W]."""

LPIPS_MIN_SIDE = 32
"""AlexNet's strides leave nothing of a smaller picture."""


def lpips_weights(given: str | Path | None = None) -> Path | None:
    """Find the backbone's file: the one given, else where torchvision keeps its downloads, else None.

    Raises `UsageError` where a file was given and is not there.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UsageError(f"LPIPS weights: there is no file {path}")
        return path
    return pretrained.find(ALEXNET)


def missing_lpips_sentence() -> str:
    """Say what a person is to be told who has no LPIPS weights."""
    return f"LPIPS is left out: {pretrained.missing_sentence(ALEXNET)}"


@functools.cache
def load_lpips(
    path: Path, spatial: bool = False, device: str | torch.device = "cpu", net: Literal["alex", "vgg"] = "alex"
) -> nn.Module:
    """Load LPIPS, version 0.1, from a local file of its backbone; nothing is downloaded.

    `spatial` gives a map, [B, 1, H, W], instead of a number for each picture. Each device has a network of its own, for
    moving one moves it for all who have it.

    Raises `UsageError` where the file does not hold the backbone's weights.
    """
    import lpips

    backbone = {"alex": ALEXNET, "vgg": VGG16}[net]
    state = pretrained.read_state(path, backbone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False, spatial=spatial)
    for name, parameter in network.net.named_parameters():  # slices keep the backbone's own layer numbers
        index, kind = name.split(".")[-2:]
        parameter.data.copy_(state[f"features.{index}.{kind}"])
    module: nn.Module = network.eval().requires_grad_(False).to(device)
    return module


def lpips_loss(path: Path, device: str | torch.device) -> PerceptualLoss:
    """Make LPIPS of each pair of pictures, to train with."""
    network = load_lpips(path, device=device)

    def distance(x_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        out: Tensor = network(x_BCHW.float(), target_BCHW).flatten()
        return out

    return distance


def lpips_map(path: Path, device: str | torch.device) -> PerceptualMap:
    """Make LPIPS as a map over the picture, to fit factors with."""
    network = load_lpips(path, spatial=True, device=device)

    def distance(x_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        small = (0, max(0, LPIPS_MIN_SIDE - width), 0, max(0, LPIPS_MIN_SIDE - height))
        padded = (F.pad(x, small, mode="replicate") for x in (x_BCHW, reference_BCHW))
        out: Tensor = network(*padded)[:, :, :height, :width]
        return out

    return distance
