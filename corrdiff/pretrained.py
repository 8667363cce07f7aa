"""Networks that others trained: their files, which no package brings, and what is made of them.

A file is one that torchvision or torch-fidelity would download. It is looked for in a directory that a person names,
else where torch keeps its downloads (TORCH_HOME), and never fetched; what is not the network's weights is not executed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from corrdiff.errors import UsageError


class Backbone(NamedTuple):
    """A network, and the file with its weights."""

    title: str
    file: str
    """Its name, as whoever would download it calls it."""
    architecture: Callable[[], nn.Module] | None
    """The network that the weights have to fit, on no device; None where its package checks."""


def _of_torchvision(name: str) -> Callable[[], nn.Module]:
    def architecture() -> nn.Module:
        import torchvision

        with torch.device("meta"):
            network: nn.Module = getattr(torchvision.models, name)(weights=None)
        return network

    return architecture


ALEXNET = Backbone("AlexNet", "alexnet-owt-7be5be79.pth", _of_torchvision("alexnet"))
VGG16 = Backbone("VGG-16", "vgg16-397923af.pth", _of_torchvision("vgg16"))
INCEPTION = Backbone("Inception v3", "weights-inception-2015-12-05-6726825d.pth", None)

INCEPTION_FEATURES = 2048
INCEPTION_BATCH = 8
"""Patches that go through the network together."""


def find(backbone: Backbone, directory: str | Path | None = None) -> Path | None:
    """Find a network's file, in a directory or where torch keeps its downloads; None where it is not there."""
    path = _where(directory) / backbone.file
    return path if path.is_file() else None


def missing_sentence(backbone: Backbone, directory: str | Path | None = None) -> str:
    """Say what a person is to be told who has no such file."""
    return f"the file {backbone.file} is not in {_where(directory)} (put it there to have it)"


def _where(directory: str | Path | None) -> Path:
    return Path(directory).expanduser() if directory else Path(torch.hub.get_dir()) / "checkpoints"


def read_state(path: Path, backbone: Backbone) -> dict[str, Tensor]:
    """Read a network's weights by name. Raises `UsageError` where the file does not hold them."""
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        if backbone.architecture is not None:
            backbone.architecture().load_state_dict(state, assign=True)
    except (RuntimeError, OSError, LookupError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise _wrong(path, backbone, error) from None
    return state


def _wrong(path: Path, backbone: Backbone, error: Exception) -> UsageError:
    kind = type(error).__name__  # torch's own sentences are many lines, and advise to load what is not trusted
    return UsageError(f"{path} does not hold {backbone.title}'s weights ({kind})")


@functools.cache
def load_dists(path: Path) -> nn.Module:
    """Load DISTS (arXiv 2004.07728) as torchmetrics has it: two batches in [0, 1], [B, 3, H, W] -> a number each.

    Raises `UsageError` where the file does not hold VGG-16's weights.
    """
    from torchmetrics.functional.image.dists import DISTSNetwork

    read_state(path, VGG16)
    with _downloads_are(path):
        network: nn.Module = DISTSNetwork()
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def _downloads_are(path: Path) -> Iterator[None]:
    """Let torchvision find a file among its downloads: torchmetrics has no other way to be given one."""
    before = os.environ.get("TORCH_HOME")
    with tempfile.TemporaryDirectory() as home:
        downloads = Path(home) / "hub" / "checkpoints"
        downloads.mkdir(parents=True)
        (downloads / VGG16.file).symlink_to(path.resolve())
        os.environ["TORCH_HOME"] = home
        try:
            yield
        finally:
            os.environ.pop("TORCH_HOME")
            if before is not None:
                os.environ["TORCH_HOME"] = before


@functools.cache
def load_inception(path: Path) -> nn.Module:
    """Load Inception v3 as torch-fidelity has it: uint8 [B, 3, H, W] -> features, ([B, 2048],).

    Raises `UsageError` where the file does not hold its weights.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    read_state(path, INCEPTION)
    try:
        network: nn.Module = FeatureExtractorInceptionV3("inception-v3-compat", [str(INCEPTION_FEATURES)], str(path))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise _wrong(path, INCEPTION, error) from None
    return network
