from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corrdiff import rate_control
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.config import QUALITIES
from corrdiff.format.bitstream import unpack
from corrdiff.metrics import psnr
from corrdiff.picture import Picture
from corrdiff.rate_control import Choice, Curve, Means, Point

Draw = Callable[..., Picture]


def _curve(complexity: float, gain: float, pixels: int = 1000) -> Curve:
    """Concave, as a codec's are: PSNR grows with the logarithm of the rate."""
    rates = [complexity * 1.5**q for q in range(QUALITIES)]
    return Curve(pixels, [Point(r, 25 + gain * math.log2(1 + r / complexity)) for r in rates])


def _curves(seed: int, count: int) -> list[Curve]:
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(0.02, 0.5, count), rng.uniform(1, 6, count), rng.integers(100, 10_000, count)
    return [_curve(*map(float, values[:2]), int(values[2])) for values in zip(*drawn, strict=True)]


def _over_bpp(target: float) -> Callable[[Means], float]:
    return lambda m: m.bpp - target


def _at_psnr(some: Sequence[Curve], target: float) -> Means:
    return rate_control.means(some, rate_control.fit(some, lambda m: m.psnr_db - target, parts=1))


curves = st.builds(_curves, st.integers(0, 10_000), st.integers(1, 30))


@given(curves, st.floats(0.1, 100), st.integers(0, QUALITIES - 1))
def test_climbing_finds_the_best_level_of_a_concave_curve_from_anywhere(
    some: Sequence[Curve], slope: float, start: int
) -> None:
    for curve in some:
        found = rate_control.chosen_quality(curve.points, Choice(slope, start, parts=1))
        scores = [p.psnr_db - slope * p.bpp for p in curve.points]
        assert scores[int(found)] == max(scores)


@given(curves, st.floats(0.1, 100), st.integers(0, QUALITIES - 1))
def test_of_all_sixteenths_the_best_is_found_up_to_their_rounding(
    some: Sequence[Curve], slope: float, start: int
) -> None:
    for curve in some:
        points = [rate_control.point_at(dict(enumerate(curve.points)), part / 16) for part in range(7 * 16 + 1)]
        scores = [p.psnr_db - slope * p.bpp for p in points]
        found = 16 * rate_control.chosen_quality(curve.points, Choice(slope, start, parts=16))
        assert found == int(found)
        assert abs(found - int(np.argmax(scores))) <= 1


def test_the_search_looks_at_no_more_levels_than_without_sixteenths() -> None:
    curve = _curve(0.1, 4.0)
    slope = (curve.points[5].psnr_db - curve.points[4].psnr_db) / (curve.points[5].bpp - curve.points[4].bpp)
    choice, known = Choice(slope, 4, parts=16), dict[int, Point]()
    while (level := rate_control.next_level(known, choice)) is not None:
        known[level] = curve.points[level]
    assert len(known) <= 4
    assert 4 < rate_control.best_quality(known, choice) < 5


def test_between_levels_the_rate_is_interpolated_in_the_logarithm() -> None:
    known = {2: Point(0.1, 30.0), 3: Point(0.4, 34.0)}
    assert rate_control.point_at(known, 2.5) == pytest.approx((0.2, 32.0))
    assert rate_control.point_at(known, 2) == known[2]
    assert rate_control.point_at(known, 3.0) == known[3]


@given(curves, st.floats(0, 1))
def test_with_sixteenths_a_target_is_met_to_a_sixteenth_of_one_picture(some: Sequence[Curve], share: float) -> None:
    lowest, highest = (rate_control.means(some, level) for level in (0, 7))
    target = lowest.bpp + share * (highest.bpp - lowest.bpp)
    found = rate_control.means(some, rate_control.fit(some, _over_bpp(target), parts=16))
    pixels = sum(curve.pixels for curve in some)
    step = max(c.pixels * c.points[-1].bpp * (1 - 1.5 ** (-1 / 16)) for c in some) / pixels
    assert abs(found.bpp - target) <= step * (1 + 1e-9)


@given(curves, st.floats(0, 1))
def test_the_target_is_met_as_nearly_as_one_picture_s_step_allows(some: Sequence[Curve], share: float) -> None:
    lowest, highest = (rate_control.means(some, level) for level in (0, 7))
    target = lowest.bpp + share * (highest.bpp - lowest.bpp)
    found = rate_control.means(some, rate_control.fit(some, _over_bpp(target), parts=1))
    pixels = sum(curve.pixels for curve in some)
    assert abs(found.bpp - target) <= max(c.pixels * (c.points[-1].bpp - c.points[-2].bpp) for c in some) / pixels


def test_the_choice_beats_one_quality_for_all_at_the_same_rate() -> None:
    some = [curve._replace(pixels=1000) for curve in _curves(0, 200)]
    for quality in range(1, QUALITIES - 1):
        bpp, psnr_db = np.mean([c.points[quality] for c in some], axis=0)
        found = rate_control.means(some, rate_control.fit(some, _over_bpp(bpp), parts=1))
        assert found.bpp == pytest.approx(bpp, rel=0.01)
        assert found.psnr_db > psnr_db + 0.2
        found = _at_psnr(some, psnr_db)
        assert found.psnr_db == pytest.approx(psnr_db, rel=0.001)
        assert found.bpp < bpp


def test_a_target_out_of_reach_gives_what_is_nearest() -> None:
    some = [_curve(0.1, 3), _curve(0.2, 2)]
    ends = [float(np.mean([c.points[q].bpp for c in some])) for q in (0, -1)]
    for target, end in zip((0.0, 100.0), ends, strict=True):
        assert rate_control.means(some, rate_control.fit(some, _over_bpp(target), parts=1)).bpp == pytest.approx(end)


@pytest.mark.parametrize(("height", "width", "tile"), [(40, 72, None), (300, 260, 256)])
def test_a_preview_says_what_the_file_and_the_end_to_end_picture_will_be(
    codec: CorrDiffCodec, draw: Draw, height: int, width: int, tile: int | None
) -> None:
    images, settings = [draw(height, width, seed=s) for s in range(3)], Settings(steps=1, tile=tile)
    qualities = [0, 4, 7]
    latents = codec.latents(images, settings)
    found = codec.preview(images, latents, settings, qualities)
    for image, quality, preview in zip(images, qualities, found, strict=True):
        encoded = codec.compress_batch([image], Settings(quality, steps=1, tile=tile))[0]
        factors = sum(len(t.factors) for t in unpack(encoded.data).tiles)
        assert len(encoded.data) - factors <= preview.bytes <= len(encoded.data) - factors + 2 * len(latents)
        d = codec.decompress(encoded.data, "privileged")
        assert Point.of(0, 1, preview.mse).psnr_db == pytest.approx(psnr(image, d), abs=0.05)


def test_pictures_of_a_batch_may_each_have_a_quality(codec: CorrDiffCodec, draw: Draw) -> None:
    images, settings = [draw(40, 72, seed=s) for s in range(3)], Settings(steps=1)
    pending = codec.encode_batch(images, settings, [7, 0, 4])
    assert [p.header.quality for p in pending] == [7, 0, 4]
    for image, p in zip(images, pending, strict=True):
        (alone,) = codec.encode_batch([image], Settings(p.header.quality, steps=1))
        assert np.array_equal(p.symbols[0].y_n, alone.symbols[0].y_n)
