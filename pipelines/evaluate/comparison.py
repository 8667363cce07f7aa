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

from corrdiff.metrics import Better, Metric, SetMetric
from pipelines.evaluate.pchip import Floats, Pchip, pchip

Mask = npt.NDArray[np.bool_]

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


# --- BD measures; of many draws of the pictures at once, D of them, the first of all pictures


class Fitted(NamedTuple):
    """A curve over all pictures, and over each draw of the bootstrap, interpolated in both directions."""

    points: MetricPoints
    rate: Pchip
    """The logarithm of the rate over the fitted quality; where `rate_known_D` is False, of no meaning."""
    rate_known_D: Mask
    quality: Pchip
    """The other way round."""
    quality_known_D: Mask
    refusal: str
    """Why there is no rate over the quality of all pictures; empty where there is."""


def fit(points: MetricPoints) -> Fitted:
    """Interpolate a curve; all curves of as many pictures draw the same ones."""
    pictures = points.bpp_PN.shape[1]
    resamples = RESAMPLES if pictures >= INTERVAL_PICTURES else 0
    drawn = np.random.default_rng(0).integers(0, pictures, (resamples, pictures))
    weights_DN = np.full((1 + resamples, pictures), 1 / pictures)
    for weights_N, draw in zip(weights_DN[1:], drawn, strict=True):
        weights_N[:] = np.bincount(draw, minlength=pictures) / pictures
    return _fit(points, weights_DN @ points.bpp_PN.T, weights_DN @ points.value_PN.T)


def _fit(points: MetricPoints, bpp_DP: Floats, value_DP: Floats) -> Fitted:
    """Interpolate curves of mean rates and mean values, each in the order of its rates."""
    order = np.argsort(bpp_DP, 1)
    bpp_DP = np.take_along_axis(bpp_DP, order, 1)
    quality_DP = np.take_along_axis(points.fitted(value_DP), order, 1)
    refusal = _unfit(bpp_DP[0], quality_DP[0])
    several = bpp_DP.shape[1] > 1
    rates_rise_D = several & (np.diff(bpp_DP) > 0).all(1) & np.isfinite(quality_DP).all(1)
    known_D = rates_rise_D & (np.diff(quality_DP) > 0).all(1)
    if not several:  # two points of no meaning, so that there is something to interpolate
        bpp_DP, quality_DP = (np.repeat(values, 2, 1) for values in (bpp_DP, quality_DP))
    with np.errstate(all="ignore"):
        log_DP = np.log(bpp_DP)
        return Fitted(points, pchip(quality_DP, log_DP), known_D, pchip(log_DP, quality_DP), rates_rise_D, refusal)


def _unfit(bpp_P: Floats, quality_P: Floats) -> str:
    """Why a curve has no rate over its quality; empty where it has."""
    if len(bpp_P) < 2:
        return "a curve of one point"
    if not np.isfinite(quality_P).all():
        return "a value without a logarithm"
    if (np.diff(bpp_P) <= 0).any():
        return "two points of one rate"
    return "larger files are not better everywhere" if (np.diff(quality_P) <= 0).any() else ""


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
    pictures = one.points.bpp_PN.shape[1]
    with np.errstate(all="ignore"):
        low_D, high_D, whole_D = _shared_qualities(one, other, bpp_range)
        rate_D = 100 * np.expm1(one.rate.mean(low_D, high_D) - other.rate.mean(low_D, high_D))
        rate_D = np.where(low_D < high_D, rate_D, np.nan)
        quality_D = quality_differences(one, other, bpp_range)
    shares = bool(low_D[0] < high_D[0])
    refusal = one.refusal or other.refusal or ("" if shares else "the curves share no qualities")
    if not refusal:
        crossing = _crossing(one.rate, other.rate, low_D[0], high_D[0])
        refusal = "" if crossing is None else f"the curves cross at {one.points.said(crossing)}"
    return Comparison(
        name, other_name, metric, None if refusal else _with_interval(rate_D, pictures),
        _with_interval(quality_D, pictures),
        (one.points.said(low_D[0]), one.points.said(high_D[0])) if shares else None,
        float((high_D[0] - low_D[0]) / whole_D[0]) if shares else 0.0, bpp_range, refusal,
    )  # fmt: skip


def _shared_qualities(
    one: Fitted, other: Fitted, bpp_range: tuple[float, float] | None
) -> tuple[Floats, Floats, Floats]:
    """From where to where the qualities are that both curves have, the reference in a range of rates, and how far that
    goes for the reference alone; NaN where a curve has no rate over its quality."""
    low_D, high_D = other.rate.starts, other.rate.ends
    if bpp_range is not None:
        rates = (np.clip(math.log(rate), other.quality.starts, other.quality.ends) for rate in bpp_range)
        low_D, high_D = (other.quality.at(rate_D) for rate_D in rates)
    known_D = one.rate_known_D & other.rate_known_D
    shared = np.maximum(one.rate.starts, low_D), np.minimum(one.rate.ends, high_D)
    return np.where(known_D, shared[0], np.nan), np.where(known_D, shared[1], np.nan), high_D - low_D


def _crossing(one: Pchip, other: Pchip, low: float, high: float) -> float | None:
    """A quality at which the curves of all pictures cross, or None where they do not."""
    places = np.linspace(low, high, LOOKED_AT)
    of_all = (Pchip(*(values[:1].repeat(LOOKED_AT, 0) for values in curve)) for curve in (one, other))
    ours, theirs = (curve.at(places) for curve in of_all)
    apart = ours - theirs
    if not (apart.max() > CROSSING and apart.min() < -CROSSING):
        return None
    sides = np.sign(apart)
    return float(places[np.flatnonzero(sides[1:] != sides[:-1])[0]])


def quality_differences(one: Fitted, other: Fitted, bpp_range: tuple[float, float] | None = None) -> Floats:
    """BD of the quality in each draw, [D], over the rates that both reach; NaN where there are none."""
    low_D, high_D = (np.maximum(one.quality.starts, other.quality.starts),
                     np.minimum(one.quality.ends, other.quality.ends))  # fmt: skip
    if bpp_range is not None:
        low_D, high_D = np.maximum(low_D, math.log(bpp_range[0])), np.minimum(high_D, math.log(bpp_range[1]))
    apart_D = one.quality.mean(low_D, high_D) - other.quality.mean(low_D, high_D)
    if one.points.better == "lower":
        apart_D = 100 * np.expm1(-apart_D)
    known_D = one.quality_known_D & other.quality_known_D & (low_D < high_D) & (one.points.better != "one")
    return np.where(known_D, apart_D, np.nan)


def _with_interval(value_D: Floats, pictures: int) -> Delta | None:
    """The value of all pictures, and between which values those of the draws lie."""
    value, drawn = float(value_D[0]), value_D[1:]
    if math.isnan(value):
        return None
    if not len(drawn) or np.isnan(drawn).any():  # without the draws that do not overlap an interval would flatter
        return Delta(value, None, None)
    low, high = np.percentile(drawn, _percentiles(pictures))
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
    keys = curve.pictures.get(metric, [])
    if not keys:
        return {}
    with np.errstate(all="ignore"):
        one, other = (_fit(p, p.bpp_PN.T, p.value_PN.T) for p in (c.points[metric] for c in (curve, reference)))
        apart_N = quality_differences(one, other)
    return {key: float(apart) for key, apart in zip(keys, apart_N, strict=True) if not math.isnan(apart)}
