"""Rate and quality of a picture, each by a kept library where there is one.

A metric that cannot be computed is None, never a number.
"""

from __future__ import annotations

import functools
import math
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdiff import correction
from corrdiff.codec import Picture
from corrdiff.errors import UsageError

MS_SSIM_MIN_SIDE = 161
"""Five scales and an 11x11 window need more than (11 - 1) * 2**4 pixels (pytorch_msssim)."""

LPIPS_MIN_SIDE = 32
"""AlexNet's strides leave nothing of a smaller picture."""

LPIPS_BACKBONE = "alexnet-owt-7be5be79.pth"
"""The file that torchvision would download for `lpips.LPIPS(net="alex")`."""


def bits_per_pixel(data_bytes: int, height: int, width: int) -> float:
    """Bits of the whole file over pixels."""
    return 8 * data_bytes / (height * width)


def psnr(original: Picture, picture: Picture) -> float:
    """Peak signal-to-noise ratio in dB over all channels of two uint8 pictures; infinite where they are equal."""
    mse = float(np.mean((original.astype(np.float64) - picture.astype(np.float64)) ** 2))
    return float("inf") if mse == 0 else float(10 * np.log10(255.0**2 / mse))


def ms_ssim(original: Picture, picture: Picture) -> float | None:
    """Multi-scale SSIM (pytorch_msssim) in RGB, or None where a side is under 161 pixels."""
    if min(original.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    import pytorch_msssim

    a, b = (torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] for p in (original, picture))
    return float(pytorch_msssim.ms_ssim(a, b, data_range=255.0))


def ms_ssim_db(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """-10 log10(1 - MS-SSIM), as curves show it: it spreads what is near 1."""
    decibels: npt.NDArray[np.float64] = -10 * np.log10(np.maximum(1 - value, 1e-12))
    return decibels


def texture_error(original: Picture, picture: Picture) -> float:
    """Mean absolute log ratio of local band energies (see correction.py): 0 is the same texture, lower is better."""
    return float(correction.texture_error(_signed(original), _signed(picture)))


def high_frequency(original: Picture, picture: Picture) -> float | None:
    """Energy of the finest band over the original's: 1 is as much fine detail, wherever it lies. None where the
    original has none."""
    energy = float(correction.high_frequency_energy(_signed(original)))
    return float(correction.high_frequency_energy(_signed(picture))) / energy if energy > 0 else None


def lpips_weights(given: str | Path | None = None) -> Path | None:
    """The backbone's file: the one given, else where torchvision keeps its downloads, else None.

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
    """What to tell a person who has no LPIPS weights."""
    return f"LPIPS is left out: its backbone {LPIPS_BACKBONE} is not in {_downloads()} (put it there to have it)"


def _downloads() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


@functools.cache
def load_lpips(path: Path, spatial: bool = False) -> nn.Module:
    """LPIPS (arXiv 1801.03924), version 0.1 with AlexNet, from a local backbone file; nothing is downloaded.

    `spatial` gives a map, [B, 1, H, W], instead of a number for each picture.

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
    module: nn.Module = net.eval().requires_grad_(False)
    return module


def lpips_distance(original: Picture, picture: Picture, network: nn.Module) -> float | None:
    """LPIPS between two pictures, or None where a side is too small for the backbone (under 32 pixels)."""
    if min(original.shape[:2]) < LPIPS_MIN_SIDE:
        return None
    with torch.inference_mode():
        return float(network(_signed(original), _signed(picture)))


def lpips_map(path: Path, device: str | torch.device) -> correction.Perceptual:
    """LPIPS as a map over the picture, to fit factors with."""
    network = load_lpips(path, spatial=True).to(device)

    def distance(x_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
        height, width = x_BCHW.shape[2:]
        small = (0, max(0, LPIPS_MIN_SIDE - width), 0, max(0, LPIPS_MIN_SIDE - height))
        padded = (F.pad(x, small, mode="replicate") for x in (x_BCHW, reference_BCHW))
        out: Tensor = network(*padded)[:, :, :height, :width]
        return out

    return distance


def _signed(picture: Picture) -> Tensor:
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


class Metric(NamedTuple):
    """How near a picture is to its original, in one number; a row of the table that everything else is made from."""

    name: str
    """Of a column, an MLflow metric, an option."""
    title: str
    """For people, on an axis too."""
    better: Literal["higher", "lower", "one"]
    measure: Callable[[Picture, Picture, nn.Module | None], float | None]
    """(original, picture, LPIPS or None) -> the value, or None where there is none."""
    on_axis: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] | None = None
    """What curves and BD-rates take instead of the value."""
    axis: str = ""
    """Title of an axis of that; the metric's own title where it is empty."""
    in_datasets: bool = True
    """Whether a compression records it for every picture."""
    method: str = ""
    """How it is computed, in the words of a report."""
    library: str = ""
    """The package that computes it, whose version a report names too."""


def _finite_psnr(original: Picture, picture: Picture, _: nn.Module | None) -> float | None:
    decibels = psnr(original, picture)
    return decibels if math.isfinite(decibels) else None


METRICS = (
    Metric(
        "psnr_db", "PSNR, dB", "higher", _finite_psnr,
        method="10 log10(255² / MSE), MSE over all RGB values of a picture", library="numpy",
    ),
    Metric(
        "ms_ssim", "MS-SSIM", "higher", lambda o, p, _: ms_ssim(o, p), ms_ssim_db, "MS-SSIM, dB",
        method="RGB, five scales, window 11, sigma 1.5; curves and BD in -10 log10(1 - MS-SSIM); absent where a side "
               f"is under {MS_SSIM_MIN_SIDE} pixels",
        library="pytorch_msssim",
    ),
    Metric(
        "texture_error", "texture error", "lower", lambda o, p, _: texture_error(o, p),
        method="ours: mean absolute logarithm of the ratio of local energies in bands of a Laplacian pyramid; 0 is the "
               "same texture everywhere; our encoder chooses its factors by it, no anchor does",
    ),
    Metric(
        "lpips", "LPIPS", "lower",
        lambda o, p, lpips: lpips_distance(o, p, lpips) if lpips is not None else None,
        method="version 0.1 with AlexNet", library="lpips",
    ),
    Metric(
        "high_frequency", "high frequencies", "one", lambda o, p, _: high_frequency(o, p),
        axis="high frequencies, of the original's", in_datasets=False,
        method="ours: energy of the finest band of a Laplacian pyramid over the original's; 1 is as much of it",
    ),
)  # fmt: skip
"""Of equal pictures PSNR is absent, of small ones MS-SSIM and LPIPS are, and LPIPS where there is no network."""

DATASET_METRICS = tuple(metric for metric in METRICS if metric.in_datasets)


def quality(
    original: Picture, picture: Picture, lpips: nn.Module | None, metrics: Sequence[Metric] = METRICS
) -> dict[str, float | None]:
    """Everything that says how near a picture is to its original, by the names under which it is recorded."""
    return {metric.name: metric.measure(original, picture, lpips) for metric in metrics}
