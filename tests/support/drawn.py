"""Pictures that are drawn from a seed: the same for the same arguments, on every machine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIZES = [(40, 64), (64, 40), (17, 90), (64, 64)]
ORIGINALS = 26
"""Pictures that the tests of compression have, of those sizes in turn."""


def draw(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Draw smooth gradients, edges and some noise: RGB uint8 [H, W, 3], the same for the same arguments."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    phase = rng.uniform(0, 2 * np.pi, 6)
    waves = [np.sin(x / 23 + y / (31 + 7 * c) + phase[c]) + np.sin(y / 11 - x / 47 + phase[3 + c]) for c in range(3)]
    edges = 60.0 * ((x // 24 + y // 16) % 2)
    noise = rng.normal(0, 8, (height, width, 3))
    picture = 110 + 40 * np.stack(waves, axis=-1) + edges[..., None] + noise
    return picture.clip(0, 255).astype(np.uint8)


def make_picture(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    """Draw a smooth picture with one flat rectangle and little noise: RGB uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 64.0
    out = np.zeros((height, width, 3))
    for c in range(3):
        a, b, phase = rng.uniform(0.5, 3, 3)
        out[..., c] = 120 + 70 * np.sin(a * x + phase) * np.cos(b * y) + rng.normal(0, 6, (height, width))
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    out[top : top + height // 3, left : left + width // 3] = rng.uniform(0, 255, 3)
    return np.clip(out, 0, 255).astype(np.uint8)
