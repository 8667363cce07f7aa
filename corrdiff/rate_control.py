"""One quality for each picture, so that many together meet a rate or a quality.

Of all ways to spend the same bits, the mean PSNR is highest where the last bit gains as much in every picture: where
each takes the quality with the highest `psnr - slope * bpp`, for one slope (a Lagrangian; Shoham and Gersho 1988). The
slope is found on a sample whose pictures are known at every level (`fit`). A picture is then tried at a few levels
only (`next_level`), which costs little: rate and PSNR are those of D, before the diffusion has run
(`CorrDiffCodec.preview`).

Qualities between two levels are not tried: gains are interpolated in the logarithm there, and so PSNR is interpolated
here, and the logarithm of the rate. Where the sum is highest is then known in closed form (`_summit`).

Only arithmetic on numbers is here.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from corrdiff.config import QUALITIES

MAX_PSNR_DB = 60.0
"""Better pictures are not told apart: a few flat ones must not take all the gain."""

_SLOPES = -12.0, 20.0
"""Where a slope may lie: powers of two, in dB a bpp."""
_BISECTIONS = 40


class Point(NamedTuple):
    """A picture at one quality."""

    bpp: float
    psnr_db: float

    @staticmethod
    def of(size: float, pixels: int, mse: float) -> Point:
        """Make a point of a size in bytes and a mean squared error in grey levels squared."""
        return Point(8 * size / pixels, min(MAX_PSNR_DB, 10 * math.log10(255**2 / max(mse, 1e-9))))


class Curve(NamedTuple):
    """A picture at every level."""

    pixels: int
    points: Sequence[Point]


class Choice(NamedTuple):
    """How each picture of a dataset finds its quality."""

    slope: float
    """What another bit must gain, in dB a bpp."""
    start: int
    """The level that is tried first: that of most pictures."""
    parts: int
    """Qualities between two levels, and one of the levels: 1 where levels are all there is."""


class Means(NamedTuple):
    """What many pictures come to together."""

    bpp: float
    """All bits over all pixels."""
    psnr_db: float
    """The mean over the pictures, each counted once."""


def best_level(known: Mapping[int, Point], slope: float) -> int:
    """Find the best level of those that were tried."""
    return max(known, key=lambda level: _score(known[level], slope))


def next_level(known: Mapping[int, Point], choice: Choice) -> int | None:
    """Find the level to try next, uphill from the start; None where the best one that is known is a summit."""
    if not known:
        return choice.start
    best = best_level(known, choice.slope)
    return next((level for level in (best + 1, best - 1) if 0 <= level < QUALITIES and level not in known), None)


def best_quality(known: Mapping[int, Point], choice: Choice) -> float:
    """Find the best quality, between levels too, of a picture that was tried at its best level and those beside it."""
    best = best_level(known, choice.slope)
    around = [level + _summit(known, level, choice) for level in (best - 1, best) if {level, level + 1} <= known.keys()]
    return max([best, *around], key=lambda quality: _score(point_at(known, quality), choice.slope))


def point_at(known: Mapping[int, Point], quality: float) -> Point:
    """Say what a picture comes to at a quality between levels that are known, or at one of them."""
    level = int(quality)
    share = quality - level
    if not share:
        return known[level]
    below, above = known[level], known[level + 1]
    bpp = below.bpp * (above.bpp / below.bpp) ** share
    return Point(bpp, below.psnr_db + share * (above.psnr_db - below.psnr_db))


def chosen_quality(points: Sequence[Point], choice: Choice) -> float:
    """Find the quality that a picture takes whose points are all known."""
    known: dict[int, Point] = {}
    while (level := next_level(known, choice)) is not None:
        known[level] = points[level]
    return best_quality(known, choice)


def _score(point: Point, slope: float) -> float:
    return point.psnr_db - slope * point.bpp


def _summit(known: Mapping[int, Point], level: int, choice: Choice) -> float:
    """Find where between a level and the next the score is highest, 0 to 1, of the qualities that there are."""
    below, above = known[level], known[level + 1]
    gain_db, growth = above.psnr_db - below.psnr_db, math.log(above.bpp / below.bpp)
    if gain_db <= 0 or growth <= 0:
        return 0.0
    # d/ds (gain s - slope below exp(growth s)) = 0
    share = math.log(gain_db / (choice.slope * below.bpp * growth)) / growth
    return round(min(max(share, 0.0), 1.0) * choice.parts) / choice.parts


def means(curves: Sequence[Curve], rule: Choice | int) -> Means:
    """Compute what pictures come to together, by a choice or all at one level."""
    chosen = [
        point_at(dict(enumerate(c.points)), rule if isinstance(rule, int) else chosen_quality(c.points, rule))
        for c in curves
    ]
    pixels = [curve.pixels for curve in curves]
    bits = math.fsum(n * point.bpp for n, point in zip(pixels, chosen, strict=True))
    return Means(bits / sum(pixels), statistics.fmean(point.psnr_db for point in chosen))


def fit(curves: Sequence[Curve], excess: Callable[[Means], float], parts: int) -> Choice:
    """Find the choice with which the pictures' means come nearest to a target, which they exceed by `excess`.

    Both means fall as the slope rises. `parts` is the choice's.
    """

    def at(exponent: float) -> Choice:
        slope = 2.0**exponent
        best = Counter(best_level(dict(enumerate(curve.points)), slope) for curve in curves)
        return Choice(slope, min(best, key=lambda level: (-best[level], level)), parts)

    low, high = _SLOPES
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(means(curves, at(middle))) > 0 else (low, middle)
    return min(at(low), at(high), key=lambda choice: abs(excess(means(curves, choice))))
