"""LPIPS (arXiv 1801.03924), where the weights of its backbone are at hand: as a loss, and as a map to fit factors with.

Shapes: x_BCHW pictures in [-1, 1].
"""

from __future__ import annotations

import functools
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdiff.errors import UsageError

PerceptualLoss = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pictures -> the distance of each pair, [B]."""

PerceptualMap = Callable[[Tensor, Tensor], Tensor]
"""Two batches of pictures -> how far they are from each other at each pixel, [B, 1, H, W]."""

LPIPS_MIN_SIDE = 32
"""AlexNet's strides leave nothing of a smaller picture."""

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
"""The file that torchvision would download for `lpips.LPIPS(net="alex")`."""


def lpips_weights(given: str | Path | None = None) -> Path | None:
    """Find the backbone's file: the one given, else where torchvision keeps its downloads, else None.

    Raises `UsageError` where a file was given and is not there.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UsageError(f"LPIPS weights: there is no file {path}")
        return path
    path = _downloads() / LPIPS_BACKBONE
    return path if path.is_file() else None


def missing_lpips_sentence() -> str:
    """Say what a person is to be told who has no LPIPS weights."""
    return f"LPIPS is left out: its backbone {LPIPS_BACKBONE} is not in {_downloads()} (put it there to have it)"


def _downloads() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


@functools.cache
def load_lpips(path: Path, spatial: bool = False, device: str | torch.device = "cpu") -> nn.Module:
    """Load LPIPS, version 0.1 with AlexNet, from a local backbone file; nothing is downloaded.

    `spatial` gives a map, [B, 1, H, W], instead of a number for each picture. Each device has a network of its own, for
    moving one moves it for all who have it.

    Raises `UsageError` where the file does not hold AlexNet's weights.
    """
    import lpips
    import torchvision

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
            net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False, spatial=spatial)
            backbone = torchvision.models.alexnet(weights=None)
            backbone.load_state_dict(state)
    except (RuntimeError, OSError, LookupError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
        kind = type(error).__name__  # torch's own sentences are many lines, and advise to load what is not trusted
        raise UsageError(f"LPIPS weights: {path} does not hold AlexNet's weights ({kind})") from None
    for name, parameter in net.net.named_parameters():  # slices keep AlexNet's own layer numbers
        index, kind = name.split(".")[-2:]
        parameter.data.copy_(state[f"features.{index}.{kind}"])
    module: nn.Module = net.eval().requires_grad_(False).to(device)
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
