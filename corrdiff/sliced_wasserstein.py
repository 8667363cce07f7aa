"""Sliced Wasserstein distance between two sets of pictures (arXiv 1710.10196, section 5). No weights are needed.

Small patches of each level of the pictures' Laplacian pyramids are two clouds of points. Projected onto a line, two
clouds are as far from each other as their sorted values are; the distance is the mean over many lines.

Shapes: x_CHW a level of a pyramid; patches [P, 3, 7, 7]; D numbers a patch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff.picture import Picture

Floats = npt.NDArray[np.float32]

SIDE = 7
"""Patches are of 7x7 pixels and three channels."""
PATCHES = 128
"""Patches of a picture and level."""
MOST_PATCHES = 1 << 15
"""Patches of a set and level, 19 MB: of more than 256 pictures each gives fewer."""
MIN_SIDE = 16
"""Levels are made while both sides have so many pixels."""
DIRECTIONS = 512
BATCH = 64
"""Directions that are projected on together."""
SEED = 0

KERNEL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""Burt and Adelson's, along each axis."""

FLAT = 1e-3
"""Grey levels: a deviation below it is that of computing, and is not made larger."""


def sliced_wasserstein(originals: Sequence[Picture], pictures: Sequence[Picture]) -> float | None:
    """Compute how far a set of pictures is from that of its originals, the mean over the levels; equal sets have 0.

    The two are of the same sizes in the same order. Each picture is asked for once and let go, so sequences may open
    them one by one. Patches are drawn at the same places of both, always the same ones. It is None where no picture has
    sides of MIN_SIDE. Raises `ValueError` where the sets are not of the same sizes.
    """
    drawn: list[tuple[list[Floats], list[Floats]]] = []
    for i, (original, picture) in enumerate(zip(originals, pictures, strict=True)):
        if original.shape != picture.shape:
            raise ValueError(f"picture {i} is of {picture.shape}, its original of {original.shape}")
        drawn.append((draw_patches(original, i, len(originals)), draw_patches(picture, i, len(originals))))
    return distance([theirs for theirs, _ in drawn], [ours for _, ours in drawn])


def draw_patches(picture: Picture, place: int, pictures: int) -> list[Floats]:
    """Draw the patches of each level of one picture, [P, 3, 7, 7], the finest first; none of one under MIN_SIDE.

    Where they are depends on its `place` in its set, and how many they are on how many `pictures` that has.
    """
    number = max(1, min(PATCHES, MOST_PATCHES // max(1, pictures)))
    return [
        _patches(x_CHW, number, np.random.default_rng((SEED, place, level)))
        for level, x_CHW in enumerate(_pyramid(picture))
    ]


def distance(originals: Sequence[Sequence[Floats]], pictures: Sequence[Sequence[Floats]]) -> float | None:
    """Compute the distance from the patches of each picture of two sets, as `draw_patches` gives them."""
    levels = max((len(drawn) for drawn in originals), default=0)
    if not levels:
        return None
    clouds = [
        [np.concatenate([drawn[level] for drawn in one if level < len(drawn)]) for one in (originals, pictures)]
        for level in range(levels)
    ]
    return float(np.mean([_distance(*(_points(patches) for patches in both)) for both in clouds]))


def _pyramid(picture: Picture) -> Iterator[Tensor]:
    """Make the bands of a picture, the finest first; the last one is what is left."""
    x_CHW = torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)
    while min(x_CHW.shape[1:]) >= MIN_SIDE:
        low_CHW = _smooth(x_CHW)[:, ::2, ::2]
        if min(low_CHW.shape[1:]) < MIN_SIDE:
            yield x_CHW
            return
        spread_CHW = torch.zeros_like(x_CHW)
        spread_CHW[:, ::2, ::2] = low_CHW
        yield x_CHW - 4 * _smooth(spread_CHW)
        x_CHW = low_CHW


def _smooth(x_CHW: Tensor) -> Tensor:
    """Blur by KERNEL, mirrored at the edges."""
    out = F.pad(x_CHW, (2, 2, 2, 2), mode="reflect")
    for axis in (1, 2):
        size = out.shape[axis] - 4
        parts = (weight * out.narrow(axis, k, size) for k, weight in enumerate(KERNEL))
        out = functools.reduce(Tensor.add_, parts)
    return out


def _patches(x_CHW: Tensor, number: int, rng: np.random.Generator) -> Floats:
    """Draw patches uniformly over a level."""
    height, width = x_CHW.shape[1:]
    top = torch.from_numpy(rng.integers(0, height - SIDE + 1, number))
    left = torch.from_numpy(rng.integers(0, width - SIDE + 1, number))
    every = x_CHW.unfold(1, SIDE, 1).unfold(2, SIDE, 1)
    patches: Floats = every[:, top, left].transpose(0, 1).numpy()
    return patches


def _points(patches: Floats) -> Floats:
    """Bring each channel of a set's patches to mean 0 and deviation 1, [P, D]; of one that is flat to 0."""
    centred = patches.astype(np.float32) - patches.mean((0, 2, 3), dtype=np.float32, keepdims=True)
    deviation = centred.std((0, 2, 3), keepdims=True)
    points: Floats = (centred / np.where(deviation > FLAT, deviation, np.inf)).reshape(len(patches), -1)
    return points


def _distance(a_PD: Floats, b_PD: Floats) -> float:
    """Average the Wasserstein distances of what two clouds are on random lines."""
    lines = np.random.default_rng(SEED).standard_normal((a_PD.shape[1], DIRECTIONS))
    lines = (lines / np.linalg.norm(lines, axis=0)).astype(np.float32)
    parts = [lines[:, i : i + BATCH] for i in range(0, DIRECTIONS, BATCH)]
    return float(np.mean([np.abs(np.sort(a_PD @ part, 0) - np.sort(b_PD @ part, 0)).mean() for part in parts]))
