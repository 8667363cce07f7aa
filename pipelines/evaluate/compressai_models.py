"""CompressAI's trained models as systems, where their weights are at hand: real strings, really decoded.

The files are those that CompressAI would download, looked for where torch keeps its downloads, or in a directory that
is named. They are optimised for squared error.
"""

from __future__ import annotations

import functools
import importlib.metadata
import pickle
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from corrdiff.errors import UsageError
from corrdiff.picture import Picture
from corrdiff.pretrained import Backbone, find, missing_sentence
from pipelines.evaluate.coded import Coded

METRIC = "mse"
MULTIPLE = 64
"""Of the sides of what the models take; pictures are padded to it and cut again, as in CompressAI's own evaluation."""


def points(model: str, weights: str | None) -> tuple[str, ...]:
    """Give the qualities of a model whose weights are at hand.

    Raises `UsageError` where there is no such model, or none of its weights.
    """
    from compressai.zoo.image import model_architectures, model_urls

    if model not in model_urls:
        raise UsageError(f"--compressai {model} is not known; there are {', '.join(sorted(model_architectures))}")
    qualities = sorted(model_urls[model][METRIC])
    there = tuple(str(quality) for quality in qualities if find(_backbone(model, quality), weights))
    if not there:
        raise UsageError(f"--compressai {model}: {missing_sentence(_backbone(model, qualities[0]), weights)}")
    return there


def _backbone(model: str, quality: int) -> Backbone:
    from compressai.zoo.image import model_urls

    file = model_urls[model][METRIC][quality].rpartition("/")[2]
    return Backbone(f"{model} at quality {quality}", file, None)


@functools.lru_cache(maxsize=2)
def load(model: str, quality: int, weights: str | None) -> nn.Module:
    """Load one model with its entropy tables. Raises `UsageError` where its file does not hold its weights."""
    from compressai.zoo.image import model_architectures
    from compressai.zoo.pretrained import load_pretrained

    backbone = _backbone(model, quality)
    path = find(backbone, weights)
    if path is None:
        raise UsageError(f"--compressai {model}: {missing_sentence(backbone, weights)}")
    try:
        network: Any = model_architectures[model].from_state_dict(load_pretrained(_state(path)))
    except (RuntimeError, OSError, LookupError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise UsageError(f"{path} does not hold the weights of {backbone.title} ({type(error).__name__})") from None
    network.update(force=True)
    module: nn.Module = network.eval().requires_grad_(False)
    return module


def _state(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def code(model: str, picture: Picture, point: str, weights: str | None) -> Coded:
    """Send a picture through a model's strings, on the CPU."""
    network: Any = load(model, int(point), weights)
    height, width = picture.shape[:2]
    x_BCHW = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
    started = time.perf_counter()
    with torch.inference_mode():
        padded = F.pad(x_BCHW, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        coded = network.compress(padded)
        encoded = time.perf_counter()
        shown = network.decompress(coded["strings"], coded["shape"])["x_hat"][0, :, :height, :width]
        pixels = (shown.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    size = sum(len(string) for strings in coded["strings"] for string in strings)
    return Coded(pixels, size, float(point), encode_s=encoded - started, decode_s=time.perf_counter() - encoded)


def version() -> str:
    """The version of the package."""
    return importlib.metadata.version("compressai")
