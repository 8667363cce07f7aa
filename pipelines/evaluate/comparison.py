"""An evaluation's table -> rate-distortion curves, and how much one saves over another.

BD-rate (VCEG-M33, VCEG-AI11) is between mean curves: of each point, rate and quality are means over the pictures. The
logarithm of the rate is interpolated by PCHIP over the quality, which a metric of which less is better enters by its
logarithm. Intervals are percentiles of the bootstrap over pictures, as far apart as Student's t wants them
(Hesterberg 2015, arXiv 1411.5279, section 5.3: of few pictures plain percentiles are too near to each other).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
from scipy.interpolate import PchipInterpolator

from corrdiff.metrics import Better, Metric, SetMetric

Floats = npt.NDArray[np.float64]

RESAMPLES = 500
COVERAGE = 0.95
INTERVAL_PICTURES = 8
"""Of fewer pictures the bootstrap has too few different draws for its percentiles to mean anything."""

CROSSING = math.log(1.005)
"""Curves cross where one is the smaller by more than half a per cent at some qualities, and the other at others."""
LOOKED_AT = 256
"""Qualities at which it is looked whether curves cross."""


@dataclass(frozen=True)
class MetricPoints:
    """A curve's points in one metric, of the pictures that have it in every curve; P points, N pictures.

    Of a metric of sets N is 1: the set.
    """

    bpp_PN: Floats
    value_PN: Floats
    better: Better = "higher"
    on_axis: Callable[[Floats], Floats] | None = None
    """What is shown instead of a mean value; the value itself where it is not given."""

    @property
    def bpp(self) -> Floats:
        """The rate of each point: the mean over all pictures."""
        values: Floats = self.bpp_PN.mean(1)
        return values

    @property
    def value(self) -> Floats:
        """The metric at each point: the mean over all pictures, as curves show it."""
        values: Floats = self.value_PN.mean(1)
        return values if self.on_axis is None else self.on_axis(values)

    def of(self, pictures: npt.NDArray[np.int64]) -> Curve:
        """The curve of some of the pictures."""
        bpp, values = self.bpp_PN[:, pictures].mean(1), self.value_PN[:, pictures].mean(1)
        order = np.argsort(bpp)
        return Curve(bpp[order], self.fitted(values)[order])

    def fitted(self, values: Floats) -> Floats:
        """Mean values on the scale on which curves are compared, where more is better; NaN where there is none."""
        if self.better == "higher":
            return values if self.on_axis is None else self.on_axis(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            logarithm = np.log(values)
        found: Floats = np.where(values > 0, -logarithm if self.better == "lower" else -np.abs(logarithm), np.nan)
        return found

    def said(self, fitted: float) -> str:
        """A place on that scale in the metric's own terms."""
        if self.better == "higher":
            return f"{fitted:.4g}"
        return f"{math.exp(-fitted):.3g}" if self.better == "lower" else f"a factor of {math.exp(-fitted):.3g} from 1"


@dataclass(frozen=True)
class SystemCurve:
    """A system, decoded in one way at one fidelity, over its quality levels."""

    name: str
    system: str
    decoding: str | None
    fidelity: float | None
    quality_P: list[float]
    points: dict[str, MetricPoints]
    """By the metric's name; those that some picture has in every curve."""
    pictures: dict[str, list[str]]
    """The keys of the pictures of each metric, as they are in `points`."""


@dataclass(frozen=True)
class Delta:
    """A BD measure and its interval, which is absent where there are fewer than INTERVAL_PICTURES."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """One curve against another. What cannot be computed is absent."""

    curve: str
    reference: str
    metric: str
    rate: Delta | None
    """BD-rate in per cent: negative is smaller files at like quality."""
    quality: Delta | None
    """BD-PSNR, or the like of another metric: positive is better quality at like rate. Where less is better it is how
    much more or less of the metric there is, in per cent: negative is better."""
    quality_range: tuple[str, str] | None
    """Where both curves are, over which the BD-rate is taken, in the metric's own terms."""
    overlap: float
    """That range over the range of the reference."""
    bpp_range: tuple[float, float] | None
    refusal: str = ""
    """Why there is no BD-rate."""

    @property
    def rates(self) -> str:
        """The range of rates in words."""
        return "all" if self.bpp_range is None else f"{self.bpp_range[0]:g} to {self.bpp_range[1]:g} bpp"


def decoding_title(decoding: str, fidelity: float) -> str:
    """Say for people how a codec's files are decoded."""
    return {"privileged": "D alone", "uncorrected": "uncorrected"}.get(decoding, f"fidelity {fidelity:g}")


def whole_pictures(table: pd.DataFrame) -> list[str]:
    """List the pictures of which every system has every point."""
    bad = set(table.loc[table["error"].notna(), "picture"])
    return [str(p) for p in table["picture"].unique() if p not in bad]


def pictures_with(table: pd.DataFrame, metric: str) -> list[str]:
    """List the whole pictures of which a metric is known at every point.

    Of small pictures MS-SSIM is not known, of pictures that came back without loss PSNR.
    """
    lacking = set(table.loc[table[metric].isna(), "picture"])
    return [picture for picture in whole_pictures(table) if picture not in lacking]


POINT = ("system", "decoding", "fidelity", "quality")
"""The columns that say of which point of which curve a row is."""


def curves(
    table: pd.DataFrame, sets: pd.DataFrame, titles: dict[str, str], metrics: Sequence[Metric | SetMetric]
) -> list[SystemCurve]:
    """Make the curve of each system, of a codec one for each decoding and fidelity.

    Args:
        table: a row a picture and point.
        sets: a row a point, with the metrics of sets.
        titles: of the systems that are no codecs of ours, by system.
        metrics: those of pictures and those of sets.
    """
    whole = whole_pictures(table)
    of_pictures = [metric for metric in metrics if isinstance(metric, Metric)]
    of_sets = [metric for metric in metrics if isinstance(metric, SetMetric)]
    table = table[table["picture"].isin(whole) & (table["usual_steps"] == True)]  # noqa: E712 (of objects, some None)
    known = {metric: pictures for metric in of_pictures if (pictures := pictures_with(table, metric.name))}
    measured = [m for m in of_sets if len(sets) and sets[m.name].notna().all()]
    found: list[SystemCurve] = []
    keys = list(POINT[:3])
    key: Any
    for key, group in table.groupby(keys, sort=False, dropna=False):
        system, decoding, fidelity = key
        ours = isinstance(decoding, str)
        names = ["bpp", *(metric.name for metric in known)]
        columns = {name: group.pivot(index="quality", columns="picture", values=name) for name in names}
        points = {
            metric.name: MetricPoints(
                columns["bpp"][pictures].to_numpy(np.float64), columns[metric.name][pictures].to_numpy(np.float64),
                metric.better, metric.on_axis,
            )
            for metric, pictures in known.items()
        }  # fmt: skip
        bpp_P1 = columns["bpp"].to_numpy(np.float64).mean(1, keepdims=True)
        for one in measured:
            of_curve = _rows_of(sets, system, decoding, fidelity).set_index("quality")[one.name]
            values = of_curve.loc[columns["bpp"].index].to_numpy(np.float64)
            points[one.name] = MetricPoints(bpp_P1, values[:, None], one.better)
        found.append(
            SystemCurve(
                name=f"{system}, {decoding_title(decoding, fidelity)}" if ours else titles[system], system=system,
                decoding=decoding if ours else None, fidelity=float(fidelity) if decoding == "corrected" else None,
                quality_P=[float(quality) for quality in columns["bpp"].index], points=points,
                pictures={metric.name: pictures for metric, pictures in known.items()},
            )
        )  # fmt: skip
    return found


def _rows_of(sets: pd.DataFrame, system: str, decoding: Any, fidelity: Any) -> pd.DataFrame:
    """The rows of one curve; what a system does not have is no value that equals itself."""
    wanted = sets["system"] == system
    for name, value in (("decoding", decoding), ("fidelity", fidelity)):
        wanted &= sets[name].isna() if pd.isna(value) else sets[name] == value
    return sets[wanted]


# --- BD measures


class Curve(NamedTuple):
    """A curve to be compared: rates rising, and the fitted quality at each."""

    bpp: Floats
    quality: Floats


class Span(NamedTuple):
    """Where an interpolated curve is, and what is under it."""

    low: float
    high: float
    at: Any
    area: Any

    def mean(self, low: float, high: float) -> float:
        """The mean of the curve between two places."""
        return float(self.area(high) - self.area(low)) / (high - low)


def _rate_span(curve: Curve) -> Span | str:
    """The logarithm of the rate over the quality, or why there is none."""
    if len(curve.quality) < 2:
        return "a curve of one point"
    if not np.isfinite(curve.quality).all():
        return "a value without a logarithm"
    if (np.diff(curve.bpp) <= 0).any():
        return "two points of one rate"
    if (np.diff(curve.quality) <= 0).any():
        return "larger files are not better everywhere"
    return _span(curve.quality, np.log(curve.bpp))


def _quality_span(curve: Curve) -> Span | None:
    """The quality over the logarithm of the rate, where rates differ."""
    if len(curve.bpp) < 2 or (np.diff(curve.bpp) <= 0).any() or not np.isfinite(curve.quality).all():
        return None
    return _span(np.log(curve.bpp), curve.quality)


def _span(x: Floats, y: Floats) -> Span:
    at = PchipInterpolator(x, y)
    return Span(float(x[0]), float(x[-1]), at, at.antiderivative())


class Fitted(NamedTuple):
    """A curve over all pictures, and over each draw of the bootstrap."""

    points: MetricPoints
    rate: Span | str
    quality: Span | None
    drawn: list[tuple[Span | str, Span | None]]


def fit(points: MetricPoints) -> Fitted:
    """Interpolate a curve; all curves of as many pictures draw the same ones."""
    pictures = points.bpp_PN.shape[1]
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, pictures, pictures) for _ in range(RESAMPLES)] if pictures >= INTERVAL_PICTURES else []
    whole = points.of(np.arange(pictures))
    drawn = [points.of(draw) for draw in draws]
    return Fitted(
        points, _rate_span(whole), _quality_span(whole), [(_rate_span(curve), _quality_span(curve)) for curve in drawn]
    )


def compare(
    curve: SystemCurve, reference: SystemCurve, metric: str, bpp_range: tuple[float, float] | None = None
) -> Comparison:
    """Compare one curve with another of the same pictures, over all rates or a range of the reference's in bpp."""
    one, other = fit(curve.points[metric]), fit(reference.points[metric])
    return compare_fitted((curve.name, one), (reference.name, other), metric, bpp_range)


def compare_fitted(
    curve: tuple[str, Fitted], reference: tuple[str, Fitted], metric: str, bpp_range: tuple[float, float] | None = None
) -> Comparison:
    """The same of curves that are fitted already, each with its name."""
    (name, one), (other_name, other) = curve, reference
    span, overlap = _overlap(one.rate, other.rate, other.quality, bpp_range)
    refusal = _refusal(one, other, span)
    rate = None if refusal or span is None else _rate(one.rate, other.rate, span)
    pictures = one.points.bpp_PN.shape[1]
    rates = [_drawn_rate(a, b, bpp_range) for a, b in zip(one.drawn, other.drawn, strict=True)] if rate else []
    quality = _quality(one.quality, other.quality, bpp_range, one.points.better)
    qualities = [
        _quality(a, b, bpp_range, one.points.better)
        for (_, a), (_, b) in zip(one.drawn, other.drawn, strict=True)
    ] if quality is not None else []  # fmt: skip
    said = (one.points.said(span[0]), one.points.said(span[1])) if span else None
    return Comparison(
        name, other_name, metric, _with_interval(rate, rates, pictures), _with_interval(quality, qualities, pictures),
        said, overlap, bpp_range, refusal,
    )  # fmt: skip


def _overlap(
    one: Span | str, other: Span | str, rates: Span | None, bpp_range: tuple[float, float] | None
) -> tuple[tuple[float, float] | None, float]:
    """The qualities where both curves are, and their share of the reference's qualities in those rates."""
    if isinstance(one, str) or isinstance(other, str):
        return None, 0.0
    low, high = other.low, other.high
    if bpp_range is not None:
        if rates is None:
            return None, 0.0
        cut = [min(max(math.log(rate), rates.low), rates.high) for rate in bpp_range]
        low, high = (float(rates.at(rate)) for rate in cut)
    shared = max(one.low, low), min(one.high, high)
    return (shared, (shared[1] - shared[0]) / (high - low)) if shared[0] < shared[1] else (None, 0.0)


def _refusal(one: Fitted, other: Fitted, span: tuple[float, float] | None) -> str:
    """Why there is no BD-rate; empty where there is one."""
    for curve in (one, other):
        if isinstance(curve.rate, str):
            return curve.rate
    if span is None:
        return "the curves share no qualities"
    crossing = _crossing(one.rate, other.rate, span)
    return "" if crossing is None else f"the curves cross at {one.points.said(crossing)}"


def _crossing(one: Any, other: Any, span: tuple[float, float]) -> float | None:
    """A quality at which curves cross, or None where they do not."""
    places = np.linspace(*span, LOOKED_AT)
    apart = one.at(places) - other.at(places)
    if not (apart.max() > CROSSING and apart.min() < -CROSSING):
        return None
    sides = np.sign(apart)
    return float(places[np.flatnonzero(sides[1:] != sides[:-1])[0]])


def _rate(one: Any, other: Any, span: tuple[float, float]) -> float:
    return 100 * math.expm1(one.mean(*span) - other.mean(*span))


def _drawn_rate(
    one: tuple[Span | str, Span | None], other: tuple[Span | str, Span | None], bpp_range: tuple[float, float] | None
) -> float | None:
    span, _ = _overlap(one[0], other[0], other[1], bpp_range)
    return None if span is None else _rate(one[0], other[0], span)


def _quality(
    one: Span | None, other: Span | None, bpp_range: tuple[float, float] | None, better: Better
) -> float | None:
    """BD of the quality over the rates that both reach; None where there are none."""
    if one is None or other is None or better == "one":
        return None
    ends = (-math.inf, math.inf) if bpp_range is None else tuple(math.log(rate) for rate in bpp_range)
    low, high = max(one.low, other.low, ends[0]), min(one.high, other.high, ends[1])
    if low >= high:
        return None
    apart = one.mean(low, high) - other.mean(low, high)
    return apart if better == "higher" else 100 * math.expm1(-apart)


def _with_interval(value: float | None, drawn: list[float | None], pictures: int) -> Delta | None:
    if value is None:
        return None
    known = [d for d in drawn if d is not None]
    if not known or len(known) < len(drawn):  # without the draws that do not overlap an interval would flatter
        return Delta(value, None, None)
    low, high = np.percentile(known, _percentiles(pictures))
    return Delta(value, float(low), float(high))


@functools.cache
def _percentiles(pictures: int) -> tuple[float, float]:
    """Between which of the draws' percentiles the interval lies."""
    t = scipy.stats.t.ppf((1 + COVERAGE) / 2, pictures - 1)
    outside = 100 * float(scipy.stats.norm.cdf(-math.sqrt(pictures / (pictures - 1)) * t))
    return outside, 100 - outside


def differences(curve: SystemCurve, reference: SystemCurve, metric: str) -> dict[str, float]:
    """Give of each picture how much better a curve is than another at like rate: BD of its quality, in the units of
    `Comparison.quality`. Pictures whose rates do not overlap are absent."""
    one, other = curve.points[metric], reference.points[metric]
    found: dict[str, float] = {}
    for i, key in enumerate(curve.pictures.get(metric, [])):
        of_one = np.array([i])
        value = _quality(_quality_span(one.of(of_one)), _quality_span(other.of(of_one)), None, one.better)
        if value is not None:
            found[key] = value
    return found
