"""Rate and quality of a picture, each by a kept library where there is one.

A metric that cannot be computed is None, never a number.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from corrdiff import grain, patch_features, perceptual, pretrained, sliced_wasserstein, ssimulacra2, texture
from corrdiff.perceptual import LPIPS_MIN_SIDE
from corrdiff.picture import Picture
from corrdiff.pretrained import ALEXNET, INCEPTION, VGG16, Backbone

Floats = npt.NDArray[np.float64]
Better = Literal["higher", "lower", "one"]
Networks = Mapping[str, nn.Module]
"""The networks that are at hand, by the names of `Network`."""

MS_SSIM_MIN_SIDE = 161
"""Five scales and an 11x11 window need more than (11 - 1) * 2**4 pixels (pytorch_msssim)."""

CVVDP_DISPLAY = "standard_4k"
"""30 inches, 200 cd/m², office light, seen from twice its height: 75 pixels a degree."""
CVVDP_MIN_SIDE = 2
CVVDP_MAX_PIXELS = 1 << 24
"""It takes half a GiB a megapixel."""

VGG_MIN_SIDE = 16
VGG_MAX_PIXELS = 1 << 23
"""VGG-16's first layers take a GiB a megapixel."""


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


def lpips_vgg_distance(original: Picture, picture: Picture, network: nn.Module) -> float | None:
    """Compute LPIPS with VGG-16, or None where a side is under 32 pixels, and over 8 megapixels."""
    return None if _pixels(original) > VGG_MAX_PIXELS else lpips_distance(original, picture, network)


def dists_distance(original: Picture, picture: Picture, network: nn.Module) -> float | None:
    """Compute DISTS at the pictures' own size, or None where a side is under 16 pixels, and over 8 megapixels."""
    if min(original.shape[:2]) < VGG_MIN_SIDE or _pixels(original) > VGG_MAX_PIXELS:
        return None
    with torch.inference_mode():
        return float(network(*((_signed(p) + 1) / 2 for p in (original, picture))))


def color_video_vdp(original: Picture, picture: Picture) -> float | None:
    """Compute ColorVideoVDP of a still picture in JOD, 10 where no difference is seen.

    It is None without the package `cvvdp`, where a side is under 2 pixels, and over 16 megapixels.
    """
    height, width = original.shape[:2]
    if version_of("cvvdp") is None or min(height, width) < CVVDP_MIN_SIDE or height * width > CVVDP_MAX_PIXELS:
        return None
    with torch.inference_mode():
        return float(_cvvdp().predict(picture, original, dim_order="HWC")[0])


@functools.cache
def _cvvdp() -> Any:
    import pycvvdp

    return pycvvdp.cvvdp(display_name=CVVDP_DISPLAY, quiet=True, device=torch.device("cpu"))


def _pixels(picture: Picture) -> int:
    return picture.shape[0] * picture.shape[1]


def _signed(picture: Picture) -> Tensor:
    """Give a picture in [-1, 1], [1, 3, H, W]."""
    return torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


class Network(NamedTuple):
    """A trained network that a metric needs."""

    name: str
    backbone: Backbone
    load: Callable[[Path], nn.Module]


LPIPS = Network("lpips", ALEXNET, perceptual.load_lpips)
LPIPS_VGG = Network("lpips_vgg", VGG16, functools.partial(perceptual.load_lpips, net="vgg"))
DISTS = Network("dists", VGG16, pretrained.load_dists)
PATCH_FEATURES = Network("patch_features", INCEPTION, pretrained.load_inception)


class Metric(NamedTuple):
    """How near a picture is to its original, in one number; a row of the table that everything else is made from."""

    name: str
    """The name of the column, the MLflow metric, the option."""
    title: str
    """What people read, on an axis too."""
    better: Better
    measure: Callable[[Picture, Picture, Networks], float | None]
    """What makes of (original, picture, networks) the value, or None where there is none."""
    on_axis: Callable[[Floats], Floats] | None = None
    """What curves and BD-rates take instead of the value."""
    axis: str = ""
    """The title of an axis of what curves take; the metric's own title where it is empty."""
    in_datasets: bool = True
    """Whether a compression records it for every picture."""
    method: str = ""
    """How it is computed, in the words of a report."""
    packages: tuple[str, ...] = ()
    """What computes it, the first by its version in a report; those that are not in the plain package may be absent."""
    network: Network | None = None


@functools.cache
def version_of(library: str) -> str | None:
    """Give the version of an installed package, or None."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _finite_psnr(original: Picture, picture: Picture, _: Networks) -> float | None:
    decibels = psnr(original, picture)
    return decibels if math.isfinite(decibels) else None


def _by_network(
    network: Network, distance: Callable[[Picture, Picture, nn.Module], float | None]
) -> Callable[[Picture, Picture, Networks], float | None]:
    """Make a metric that is absent without its network."""

    def measure(original: Picture, picture: Picture, networks: Networks) -> float | None:
        return distance(original, picture, networks[network.name]) if network.name in networks else None

    return measure


METRICS = (
    Metric(
        "psnr_db", "PSNR, dB", "higher", _finite_psnr,
        method="10 log10(255² / MSE), MSE over all RGB values of a picture", packages=("numpy",),
    ),
    Metric(
        "ms_ssim", "MS-SSIM", "higher", lambda o, p, _: ms_ssim(o, p), ms_ssim_db, "MS-SSIM, dB",
        method="RGB, five scales, window 11, sigma 1.5; curves and BD in -10 log10(1 - MS-SSIM); absent where a side "
               f"is under {MS_SSIM_MIN_SIDE} pixels",
        packages=("pytorch_msssim",),
    ),
    Metric(
        "texture_error", "texture error", "lower", lambda o, p, _: texture_error(o, p),
        method="ours: mean absolute logarithm of the ratio of local energies in bands of a Laplacian pyramid; 0 is the "
               "same texture everywhere; our encoder chooses its factors by it, no anchor does",
    ),
    Metric(
        "lpips", "LPIPS", "lower", _by_network(LPIPS, lpips_distance),
        method="version 0.1 with AlexNet", packages=("lpips",), network=LPIPS,
    ),
    Metric(
        "lpips_vgg", "LPIPS (VGG)", "lower", _by_network(LPIPS_VGG, lpips_vgg_distance), in_datasets=False,
        method="version 0.1 with VGG-16; absent over 8 megapixels", packages=("lpips",), network=LPIPS_VGG,
    ),
    Metric(
        "dists", "DISTS", "lower", _by_network(DISTS, dists_distance), in_datasets=False,
        method="arXiv 2004.07728, at the pictures' own size; absent over 8 megapixels",
        packages=("torchmetrics",), network=DISTS,
    ),
    Metric(
        "high_frequency", "high frequencies", "one", lambda o, p, _: high_frequency(o, p),
        axis="high frequencies, of the original's", in_datasets=False,
        method="ours: energy of the finest band of a Laplacian pyramid over the original's; 1 is as much of it",
    ),
    Metric(
        "ssimulacra2", "SSIMULACRA2", "higher", lambda o, p, _: ssimulacra2.score(o, p), in_datasets=False,
        method="version 2.1, as libjxl's tool; 90 is hard to tell from the original, 70 is high quality, 50 medium; "
               f"absent where a side is under {ssimulacra2.MIN_SIDE} pixels",
    ),
    Metric(
        "cvvdp", "ColorVideoVDP, JOD", "higher", lambda o, p, _: color_video_vdp(o, p), in_datasets=False,
        method=f"still picture on the display {CVVDP_DISPLAY} (75 pixels a degree, 200 cd/m²); 10 is no visible "
               "difference; absent over 16 megapixels",
        packages=("cvvdp",),
    ),
    Metric(
        "grain", "grain", "one", lambda o, p, _: grain.ratio(o, p),
        axis="grain, of the original's", in_datasets=False,
        method="ours: energy at periods of 4, 8 and 16 pixels, across and down, over that of the frequencies two and "
               f"three waves in {grain.BLOCK} pixels beside, over the same of the original; more than 1 is a lattice; "
               f"absent where a side is under {grain.MIN_SIDE} pixels",
    ),
)  # fmt: skip
"""Equal pictures have no PSNR, small ones lack several; what needs a network or a package is absent without it."""

DATASET_METRICS = tuple(metric for metric in METRICS if metric.in_datasets)

Sample = list[npt.NDArray[Any]]
"""What is kept of one picture for a measure of its set."""


class SetMetric(NamedTuple):
    """How near a set of pictures is to that of its originals, in one number."""

    name: str
    title: str
    better: Better
    sampling: str
    """Under which name of `SAMPLINGS` what it needs of each picture is kept."""
    distance: Callable[[Sequence[Sample], Sequence[Sample]], float | None]
    """What makes of (originals', pictures' samples) the value, or None where there is none."""
    method: str
    """How it is computed, in the words of a report."""
    packages: tuple[str, ...] = ()
    network: Network | None = None


SAMPLINGS: dict[str, Callable[[Picture, int, int, Networks], Sample]] = {
    "pyramid_patches": lambda picture, place, pictures, _: [
        drawn.astype(np.float16) for drawn in sliced_wasserstein.draw_patches(picture, place, pictures)
    ],
    "patch_features": lambda picture, _, __, networks: (
        [patch_features.features(picture, networks[PATCH_FEATURES.name])] if PATCH_FEATURES.name in networks else []
    ),
}
"""What makes of (picture, its place in the set, pictures of the set, networks) what is kept of it."""

SET_METRICS = (
    SetMetric(
        "sliced_wasserstein", "sliced Wasserstein distance", "lower", "pyramid_patches", sliced_wasserstein.distance,
        method="arXiv 1710.10196, section 5: patches of 7x7x3 from each level of Laplacian pyramids down to 16 "
               "pixels, 128 of a picture and level, each channel normalised over its set, 512 directions; mean over "
               "the levels",
    ),
    SetMetric(
        "fid", "FID", "lower", "patch_features", patch_features.fid,
        method="of patches as in HiFiC (arXiv 2006.09965): a grid of 256x256 pixels, and the grid shifted by half; "
               "of few patches it is far too high: compare over the same pictures alone",
        packages=("torchmetrics", "torch-fidelity"), network=PATCH_FEATURES,
    ),
    SetMetric(
        "kid", "KID", "lower", "patch_features", patch_features.kid,
        method="of the same patches, cubic kernel, the unbiased estimate: of equal sets 0 in the mean",
        packages=("torchmetrics", "torch-fidelity"), network=PATCH_FEATURES,
    ),
)  # fmt: skip
"""Of whole sets; no column of a table of pictures."""


def missing(metric: Metric | SetMetric, weights: str | None = None) -> str:
    """Say in a sentence why a metric is absent; empty where nothing is missing.

    `weights` is a directory with networks' files, else they are where torch keeps its downloads.
    """
    for package in metric.packages:
        if version_of(package) is None:
            return f"the package {package} is not installed (the extra `perception` has it)"
    if metric.network is not None and pretrained.find(metric.network.backbone, weights) is None:
        return pretrained.missing_sentence(metric.network.backbone, weights)
    return ""


def load_networks(weights: str | None = None) -> Networks:
    """Load every network of the tables that is at hand.

    Raises `UsageError` where a file does not hold what its name says.
    """
    found: dict[str, nn.Module] = {}
    for metric in (*METRICS, *SET_METRICS):
        if metric.network is not None and metric.network.name not in found and not missing(metric, weights):
            path = pretrained.find(metric.network.backbone, weights)
            assert path is not None
            found[metric.network.name] = metric.network.load(path)
    return found


def quality(
    original: Picture, picture: Picture, networks: Networks, metrics: Sequence[Metric] = METRICS
) -> dict[str, float | None]:
    """Measure how near a picture is to its original, by the names under which each metric is recorded."""
    return {metric.name: metric.measure(original, picture, networks) for metric in metrics}
