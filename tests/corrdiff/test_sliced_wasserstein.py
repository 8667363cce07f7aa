from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage

from corrdiff import sliced_wasserstein as module
from corrdiff.picture import Picture
from corrdiff.sliced_wasserstein import sliced_wasserstein

Draw = Callable[..., Picture]
Floats = npt.NDArray[np.float64]

SIZES = [(80, 64), (33, 47), (20, 100), (16, 16)]


@pytest.fixture
def originals(draw: Draw) -> list[Picture]:
    return [draw(height, width, seed) for seed, (height, width) in enumerate(SIZES)]


def _noisy(picture: Picture, strength: float) -> Picture:
    noise = np.random.default_rng(1).normal(0, strength, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def _blurred(picture: Picture) -> Picture:
    return scipy.ndimage.gaussian_filter(picture, (1, 1, 0))


def _directly(originals: Sequence[Picture], pictures: Sequence[Picture]) -> float:
    """The distance as the paper describes it, in NumPy and SciPy, with the patches and lines of our seeds."""
    taps = np.array([1, 4, 6, 4, 1]) / 16

    def smooth(x: Floats) -> Floats:
        return scipy.ndimage.convolve(x, np.multiply.outer(taps, taps)[..., None], mode="mirror")

    def levels(picture: Picture) -> Iterator[Floats]:
        x = picture.astype(np.float64)
        while min(x.shape[:2]) > 30:  # half of 31 is 16
            low = smooth(x)[::2, ::2]
            spread = np.zeros_like(x)
            spread[::2, ::2] = low
            yield x - 4 * smooth(spread)
            x = low
        if min(x.shape[:2]) >= 16:
            yield x

    def patches(pictures: Sequence[Picture], level: int) -> Floats:
        drawn = []
        for i, picture in enumerate(pictures):
            found = list(levels(picture))
            if level < len(found):
                height, width = found[level].shape[:2]
                rng = np.random.default_rng((0, i, level))
                tops, lefts = rng.integers(0, height - 6, 128), rng.integers(0, width - 6, 128)
                drawn += [found[level][y : y + 7, x : x + 7] for y, x in zip(tops, lefts, strict=True)]
        array = np.array(drawn).transpose(0, 3, 1, 2)
        for c in range(3):
            array[:, c] = (array[:, c] - array[:, c].mean()) / array[:, c].std()
        return array.reshape(len(array), -1)

    lines = np.random.default_rng(0).standard_normal((147, 512))
    distances = []
    for level in range(max(len(list(levels(p))) for p in originals)):
        a, b = (patches(p, level) for p in (originals, pictures))
        of_lines = [np.abs(np.sort(a @ d) - np.sort(b @ d)).mean() / np.linalg.norm(d) for d in lines.T]
        distances.append(np.mean(of_lines))
    return float(np.mean(distances))


@pytest.mark.parametrize("distort", [_blurred, lambda p: _noisy(p, 10), lambda p: p // 2])
def test_it_is_that_of_its_definition(originals: list[Picture], distort: Callable[[Picture], Picture]) -> None:
    pictures = [distort(p) for p in originals]
    assert sliced_wasserstein(originals, pictures) == pytest.approx(_directly(originals, pictures), abs=1e-4)


def test_of_the_originals_it_is_0_and_of_others_it_grows(originals: list[Picture]) -> None:
    values = [sliced_wasserstein(originals, [_noisy(p, strength) for p in originals]) for strength in (0, 5, 20, 80)]
    assert values[0] == 0
    assert values == sorted(v for v in values if v is not None) and len(set(values)) == 4


def test_twice_it_is_the_same(originals: list[Picture]) -> None:
    pictures = [_blurred(p) for p in originals]
    assert sliced_wasserstein(originals, pictures) == sliced_wasserstein(originals, pictures)


def test_of_many_pictures_each_gives_fewer_patches(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    points = module._points
    monkeypatch.setattr(module, "MOST_PATCHES", 300)
    monkeypatch.setattr(module, "_points", lambda patches: counts.append(len(patches)) or points(patches))
    pictures = [draw(16, 16, seed) for seed in range(40)]
    sliced_wasserstein(pictures, pictures)
    assert counts == [280, 280]  # seven of each


class _Opened(Sequence[Picture]):
    """Pictures that are drawn when they are asked for."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.asked: list[int] = []

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Picture:
        if i >= len(self):
            raise IndexError
        self.asked.append(i)
        return self.draw(20, 20, i)


def test_pictures_are_opened_one_by_one(draw: Draw) -> None:
    opened = _Opened(draw)
    assert sliced_wasserstein(opened, [draw(20, 20, i) for i in range(3)]) == 0
    assert opened.asked == [0, 1, 2]


def test_of_small_pictures_it_is_not_a_number_that_is_made_up(draw: Draw) -> None:
    assert sliced_wasserstein([draw(15, 300)], [draw(15, 300)]) is None
    assert sliced_wasserstein([], []) is None


def test_flat_pictures_have_no_distance() -> None:
    flat = np.full((40, 40, 3), 90, np.uint8)
    assert sliced_wasserstein([flat], [flat + 20]) == 0


def test_sets_that_do_not_belong_together_are_refused(draw: Draw) -> None:
    with pytest.raises(ValueError, match=r"picture 0 is of \(20, 21, 3\), its original of \(20, 20, 3\)"):
        sliced_wasserstein([draw(20, 20)], [draw(20, 21)])
    with pytest.raises(ValueError):
        sliced_wasserstein([draw(20, 20)], [])
