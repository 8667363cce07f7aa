"""FID and KID between two sets of pictures, on their patches, as HiFiC measures them (arXiv 2006.09965, appendix A).

Of a picture of H x W pixels there are floor(H / f) floor(W / f) patches of a grid, f = 256, and those of the same grid
shifted by f / 2 in both directions, (floor(H / f) - 1) (floor(W / f) - 1). Kodak's 24 pictures give 192.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from corrdiff.picture import Picture
from corrdiff.pretrained import INCEPTION_BATCH, INCEPTION_FEATURES

Features = npt.NDArray[np.float32]

SIDE = 256
SUBSET = 1000
"""Patches of each of the subsets whose mean KID is where there are more (arXiv 1801.01401)."""
SUBSETS = 100
SEED = 0


def patches(picture: Picture) -> Iterator[Picture]:
    """Cut a picture into the patches of both grids, [256, 256, 3]."""
    rows, columns = (side // SIDE for side in picture.shape[:2])
    for shift in (0, 1):
        for i in range(rows - shift):
            for j in range(columns - shift):
                top, left = i * SIDE + shift * SIDE // 2, j * SIDE + shift * SIDE // 2
                yield picture[top : top + SIDE, left : left + SIDE]


def features(picture: Picture, network: nn.Module) -> Features:
    """Compute Inception's features of each patch, [patches, 2048]; of a picture under 256 pixels there is none."""
    cut = list(patches(picture))
    found = [np.zeros((0, INCEPTION_FEATURES), np.float32)]
    with torch.inference_mode():
        for i in range(0, len(cut), INCEPTION_BATCH):
            x_BCHW = torch.from_numpy(np.stack(cut[i : i + INCEPTION_BATCH])).permute(0, 3, 1, 2)
            found.append(network(x_BCHW)[0].numpy())
    return np.concatenate(found)


def fid(originals: Sequence[Sequence[Features]], pictures: Sequence[Sequence[Features]]) -> float | None:
    """Compute the Fréchet distance of two sets of features; None where there are fewer than two patches."""
    both = [_joined(one) for one in (originals, pictures)]
    if any(len(features_PD) < 2 for features_PD in both):
        return None
    from torchmetrics.image.fid import FrechetInceptionDistance

    return max(0.0, _of_features(FrechetInceptionDistance(_AsTheyAre(both[0])), both))  # -1e-7 by rounding


def kid(originals: Sequence[Sequence[Features]], pictures: Sequence[Sequence[Features]]) -> float | None:
    """Compute the unbiased kernel distance of two sets of features; None where there are fewer than two patches."""
    both = [_joined(one) for one in (originals, pictures)]
    fewest = min(len(features_PD) for features_PD in both)
    if fewest < 2:
        return None
    from torchmetrics.image.kid import KernelInceptionDistance

    subsets = SUBSETS if fewest > SUBSET else 1
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps all features in memory
        torch.manual_seed(SEED)
        metric = KernelInceptionDistance(_AsTheyAre(both[0]), subsets=subsets, subset_size=min(SUBSET, fewest))
        return _of_features(metric, both)


def _joined(one: Sequence[Sequence[Features]]) -> Tensor:
    """All features of a set, [P, D] float64."""
    kept = [array for of_picture in one for array in of_picture]
    joined = np.concatenate(kept) if kept else np.zeros((0, INCEPTION_FEATURES), np.float32)
    return torch.from_numpy(joined.astype(np.float64))


class _AsTheyAre(nn.Identity):
    """A network for torchmetrics that takes features for pictures."""

    def __init__(self, features_PD: Tensor) -> None:
        super().__init__()
        self.num_features = int(features_PD.shape[1])


def _of_features(metric: Any, both: Sequence[Tensor]) -> float:
    for features_PD, real in zip(both, (True, False), strict=True):
        metric.update(features_PD, real=real)
    value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)
