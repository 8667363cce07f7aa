"""Rate and quality of a picture, each by a kept library where there is one.

A metric that cannot be computed is None, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from corrdiff import texture
from corrdiff.perceptual import LPIPS_MIN_SIDE
from corrdiff.picture import Picture

MS_SSIM_MIN_SIDE = 161
"""Five scales and an 11x11 window need more than (11 - 1) * 2**4 pixels (pytorch_msssim)."""


def bits_per_pixel(data_bytes: int, height: int, width: int) -> float:
    """Divide the bits of the whole file by the pixels."""
    return 8 * data_bytes / (height * width)


def mse(original: Picture, picture: Picture) -> float:
    """Compute the mean squared error over all channels, in grey levels squared."""
    return float(np.mean((original.astype(np.float64) - picture.astype(np.float64)) ** 2))


def psnr(original: Picture, picture: Picture) -> float:
    """Compute the peak signal-to-noise ratio in dB over all channels; it is infinite where the pictures are equal."""
    error = mse(original, picture)
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def ms_ssim(original: Picture, picture: Picture) -> float | None:
    """Compute multi-scale SSIM (pytorch_msssim) in RGB, or None where a side is under 161 pixels."""
    if min(original.shape[:2]) < MS_SSIM_MIN_SIDE:
        return None
    import pytorch_msssim

    a, b = (torch.from_numpy(p.astype(np.float32)).permute(2, 0, 1)[None] for p in (original, picture))
    return float(pytorch_msssim.ms_ssim(a, b, data_range=255.0))


def ms_ssim_db(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Give -10 log10(1 - MS-SSIM), as curves show it: it spreads what is near 1."""
    decibels: npt.NDArray[np.float64] = -10 * np.log10(np.maximum(1 - value, 1e-12))
    return decibels


def texture_error(original: Picture, picture: Picture) -> float:
    """Compute the mean absolute log ratio of local band energies (texture.py): 0 is the same texture."""
    return float(texture.texture_error(_signed(original), _signed(picture)))


def high_frequency(original: Picture, picture: Picture) -> float | None:
    """Compute the energy of the finest band over the original's: 1 is as much fine detail, wherever it lies.

    It is None where the original has none.
    """
    energy = float(texture.high_frequency_energy(_signed(original)))
    return float(texture.high_frequency_energy(_signed(picture))) / energy if energy > 0 else None


def lpips_distance(original: Picture, picture: Picture, network: nn.Module) -> float | None:
    """Compute LPIPS between two pictures, or None where a side is too small for the backbone (under 32 pixels)."""
    if min(original.shape[:2]) < LPIPS_MIN_SIDE:
        return None
    with torch.inference_mode():
        return float(network(_signed(original), _signed(picture)))


def _signed(picture: Picture) -> Tensor:
    """Give a picture in [-1, 1], [1, 3, H, W]."""
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


class Metric(NamedTuple):
    """How near a picture is to its original, in one number; a row of the table that everything else is made from."""

    name: str
    """The name of the column, the MLflow metric, the option."""
    title: str
    """What people read, on an axis too."""
    better: Literal["higher", "lower", "one"]
    measure: Callable[[Picture, Picture, nn.Module | None], float | None]
    """What makes of (original, picture, LPIPS or None) the value, or None where there is none."""
    on_axis: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] | None = None
    """What curves and BD-rates take instead of the value."""
    axis: str = ""
    """The title of an axis of what curves take; the metric's own title where it is empty."""
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
"""Equal pictures have no PSNR, small ones no MS-SSIM and no LPIPS; without its network nothing has LPIPS."""

DATASET_METRICS = tuple(metric for metric in METRICS if metric.in_datasets)


def quality(
    original: Picture, picture: Picture, lpips: nn.Module | None, metrics: Sequence[Metric] = METRICS
) -> dict[str, float | None]:
    """Measure how near a picture is to its original, by the names under which each metric is recorded."""
    return {metric.name: metric.measure(original, picture, lpips) for metric in metrics}
