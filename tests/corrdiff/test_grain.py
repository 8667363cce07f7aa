from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage

from corrdiff import grain
from corrdiff.picture import Picture

Draw = Callable[..., Picture]
Floats = npt.NDArray[np.float64]


def _rounded(picture: Floats) -> Picture:
    return picture.round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def picture() -> Picture:
    """Colours that change slowly, with the grain of a photograph: its spectrum falls, and no period stands out."""
    rng = np.random.default_rng(3)
    parts = [rng.normal(0, 1, (320, 384, 3))]
    parts += [scipy.ndimage.gaussian_filter(rng.normal(0, 1, (320, 384, 3)), (s, s, 0)) * 2 * s for s in (1, 2, 4, 8)]
    return _rounded(128 + 8 * np.sum(parts, 0))


def _lattice(picture: Picture, period: int) -> Picture:
    """Waves of two grey levels across and down."""
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    waves = np.cos(2 * np.pi * rows / period) + np.cos(2 * np.pi * columns / period)
    return _rounded(picture + 2 * waves[..., None])


def _directly(picture: Picture) -> float:
    """The same by its definition, a frequency at a time: a discrete Fourier transform written out."""
    n = np.arange(128)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 128)
    found = []
    for luma in (picture.astype(np.float64).mean(2), picture.astype(np.float64).mean(2).T):
        height, width = luma.shape
        blocks = [luma[y : y + 128, x : x + 128] for y in range(0, height - 127, 64) for x in range(0, width - 127, 64)]

        def power(waves: int, blocks: list[Floats] = blocks) -> float:
            wave = np.outer(window, window * np.exp(-2j * np.pi * waves * n / 128))
            total = sum(abs((block * wave).sum()) ** 2 for block in blocks) / len(blocks)
            return float(total / (window**2).sum() ** 2 + 1 / 12)

        for waves in (32, 16, 8):
            beside = np.prod([power(waves + d) for d in (-3, -2, 2, 3)]) ** 0.25
            found.append(power(waves) / beside)
    return float(np.prod(found) ** (1 / len(found)))


@pytest.mark.parametrize("period", [4, 8, 16])
def test_it_is_that_of_its_definition(picture: Picture, period: int) -> None:
    other = _lattice(picture, period)
    assert grain.ratio(picture, other) == pytest.approx(_directly(other) / _directly(picture), abs=1e-3)


def test_of_the_original_it_is_1(picture: Picture, draw: Draw) -> None:
    assert grain.ratio(picture, picture) == 1
    assert grain.ratio(draw(192, 250), draw(192, 250)) == 1


@pytest.mark.parametrize("period", [4, 8, 16])
def test_a_lattice_that_was_planted_raises_it(picture: Picture, period: int) -> None:
    value = grain.ratio(picture, _lattice(picture, period))
    assert value is not None and value > 1.3


@pytest.mark.parametrize("period", [3, 5, 7, 12])
def test_a_lattice_of_another_period_does_not(picture: Picture, period: int) -> None:
    value = grain.ratio(picture, _lattice(picture, period))
    assert value is not None and value < 1.05


@pytest.mark.parametrize("sigma", [0.5, 1, 1.5])
def test_a_blur_does_not(picture: Picture, sigma: float) -> None:
    blurred = _rounded(scipy.ndimage.gaussian_filter(picture.astype(np.float64), (sigma, sigma, 0)))
    assert grain.ratio(picture, blurred) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("strength", [2, 5, 10])
def test_white_noise_does_not(picture: Picture, strength: float) -> None:
    noise = np.random.default_rng(5).normal(0, strength, picture.shape)
    assert grain.ratio(picture, _rounded(picture + noise)) == pytest.approx(1, abs=0.05)


def test_a_flat_picture_has_a_number_too() -> None:
    flat = np.full((192, 192, 3), 90, np.uint8)
    assert grain.ratio(flat, flat + 20) == pytest.approx(1)


@pytest.mark.parametrize(("height", "width"), [(191, 400), (400, 191), (1, 1)])
def test_of_a_small_picture_it_is_not_a_number_that_is_made_up(draw: Draw, height: int, width: int) -> None:
    assert grain.ratio(draw(height, width), draw(height, width)) is None
