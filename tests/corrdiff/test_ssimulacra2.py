from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import ssimulacra2.ssimulacra2 as package
from PIL import Image

from corrdiff import ssimulacra2
from corrdiff.picture import Picture

Draw = Callable[..., Picture]
Floats = npt.NDArray[np.float64]


def _noisy(picture: Picture, strength: float) -> Picture:
    noise = np.random.default_rng(1).normal(0, strength, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def _jpeg(picture: Picture, quality: int) -> Picture:
    file = BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def _file(picture: Picture) -> BytesIO:
    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file


def _taps(sigma: float) -> Floats:
    """What the filter of libjxl's tool makes of one pixel: three cosines (Charalampidis 2016, by its equations)."""
    radius = round(3.2795 * sigma + 0.2546)  # (57)
    omega = np.array([1, 3, 5]) * np.pi / (2 * radius)
    p = np.array([1, -1, 1]) / np.tan(omega / 2)  # (37)
    r = np.array([1, -1, 1]) * p**2 / np.sin(omega)  # (44)
    rho = np.exp(-(sigma**2) / 2 * omega**2) / radius  # (50)
    d13, d35, d51 = (p[i] * r[j] - r[i] * p[j] for i, j in ((0, 1), (1, 2), (2, 0)))
    last = np.array([d35 / d13, d51 / d13, 1])  # (52)
    beta = np.linalg.solve([p, r, last], [1, radius**2 - sigma**2, last @ rho])  # (53) to (56)
    return np.cos(np.outer(np.arange(-radius, radius + 1), omega)) @ beta


def _blur(image: Floats, sigma: float = 1.5) -> Floats:
    for axis in (0, 1):
        image = scipy.ndimage.correlate1d(image, _taps(sigma), axis, mode="constant")
    return image


def _of_the_package(original: Picture, picture: Picture) -> float:
    return float(package.compute_ssimulacra2(_file(original), _file(picture)))


@pytest.mark.parametrize(("height", "width"), [(256, 320), (243, 231)])
@pytest.mark.parametrize("distort", [lambda p: _noisy(p, 2), lambda p: _jpeg(p, 60), lambda p: _jpeg(p, 5)])
def test_it_is_that_of_the_package_with_the_blur_of_the_tool(
    draw: Draw, monkeypatch: pytest.MonkeyPatch, height: int, width: int, distort: Callable[[Picture], Picture]
) -> None:
    monkeypatch.setattr(package, "blur_image", _blur)
    picture = draw(height, width)
    other = distort(picture)
    assert ssimulacra2.score(picture, other) == pytest.approx(_of_the_package(picture, other), abs=1e-3)


def test_the_package_as_it_is_is_near(draw: Draw) -> None:
    picture = draw(384, 384)
    other = _jpeg(picture, 60)
    assert ssimulacra2.score(picture, other) == pytest.approx(_of_the_package(picture, other), abs=3)


def test_of_equal_pictures_it_is_100(draw: Draw) -> None:
    assert ssimulacra2.score(draw(128, 113), draw(128, 113)) == 100


def test_a_turned_picture_has_the_same(draw: Draw) -> None:
    picture = draw(150, 200)
    other = _jpeg(picture, 40)
    turned = ssimulacra2.score(picture.transpose(1, 0, 2), other.transpose(1, 0, 2))
    assert ssimulacra2.score(picture, other) == pytest.approx(turned, abs=1e-3)


def test_it_falls_with_noise(draw: Draw) -> None:
    picture = draw(128, 128)
    values = [ssimulacra2.score(picture, _noisy(picture, strength)) for strength in (1, 4, 16, 64)]
    assert values == sorted((v for v in values if v is not None), reverse=True)
    assert len(set(values)) == 4


@pytest.mark.parametrize(("height", "width"), [(112, 300), (300, 112), (1, 1)])
def test_of_a_small_picture_it_is_not_a_number_that_is_made_up(draw: Draw, height: int, width: int) -> None:
    assert ssimulacra2.score(draw(height, width), draw(height, width)) is None


def test_it_does_not_depend_on_how_many_rows_are_looked_at_together(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = draw(200, 160)
    other = _noisy(picture, 10)
    whole = ssimulacra2.score(picture, other)
    monkeypatch.setattr(ssimulacra2, "STRIP", 17)
    assert ssimulacra2.score(picture, other) == pytest.approx(whole, abs=1e-9)
