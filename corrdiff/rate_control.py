"""One quality for each picture, so that many together meet a rate or a quality.

Of all ways to spend the same bits, the mean PSNR is highest where the last bit gains as much in every picture: where
each takes the quality with the highest `psnr - slope * bpp`, for one slope (a Lagrangian; Shoham and Gersho 1988). The
slope is found on a sample whose pictures are known at every quality (`fit`). A picture is then tried at a few qualities
only (`next_quality`), which costs little: rate and PSNR are those of D, before the diffusion has run
(`CorrDiffCodec.preview`).

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
    """A picture at every quality."""

    pixels: int
    points: Sequence[Point]


class Choice(NamedTuple):
    """How each picture of a dataset finds its quality."""

    slope: float
    """What another bit must gain, in dB a bpp."""
    start: int
    """The quality that is tried first: that of most pictures."""


class Means(NamedTuple):
    """What many pictures come to together."""

    bpp: float
    """All bits over all pixels."""
    psnr_db: float
    """The mean over the pictures, each counted once."""


def best_quality(known: Mapping[int, Point], slope: float) -> int:
    """Find the best quality of those that were tried."""
    return max(known, key=lambda q: known[q].psnr_db - slope * known[q].bpp)


def next_quality(known: Mapping[int, Point], choice: Choice) -> int | None:
    """Find the quality to try next, uphill from the start; None where the best one that is known is a summit."""
    if not known:
        return choice.start
    best = best_quality(known, choice.slope)
    return next((q for q in (best + 1, best - 1) if 0 <= q < QUALITIES and q not in known), None)


def chosen_quality(points: Sequence[Point], choice: Choice) -> int:
    """Find the quality that a picture takes whose points are all known."""
    known: dict[int, Point] = {}
    while (quality := next_quality(known, choice)) is not None:
        known[quality] = points[quality]
    return best_quality(known, choice.slope)


def means(curves: Sequence[Curve], rule: Choice | int) -> Means:
    """Compute what pictures come to together, by a choice or all at one quality."""
    chosen = [c.points[rule if isinstance(rule, int) else chosen_quality(c.points, rule)] for c in curves]
    pixels = [curve.pixels for curve in curves]
    bits = math.fsum(n * point.bpp for n, point in zip(pixels, chosen, strict=True))
    return Means(bits / sum(pixels), statistics.fmean(point.psnr_db for point in chosen))


def fit(curves: Sequence[Curve], excess: Callable[[Means], float]) -> Choice:
    """Find the choice with which the pictures' means come nearest to a target, which they exceed by `excess`.

    Both means fall as the slope rises.
    """

    def at(exponent: float) -> Choice:
        slope = 2.0**exponent
        best = Counter(best_quality(dict(enumerate(curve.points)), slope) for curve in curves)
        return Choice(slope, min(best, key=lambda q: (-best[q], q)))

    low, high = _SLOPES
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(means(curves, at(middle))) > 0 else (low, middle)
    return min(at(low), at(high), key=lambda choice: abs(excess(means(curves, choice))))
