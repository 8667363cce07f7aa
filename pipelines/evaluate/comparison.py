"""An evaluation's table -> rate-distortion curves, and how much one saves over another.

BD-rate and BD-PSNR (VCEG-M33, VCEG-AI11) are the package `bjontegaard`'s, interpolated by PCHIP over the logarithm of
the rate, between mean curves: of each point, rate and quality are means over the pictures. Intervals are percentiles of
the bootstrap over pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import bjontegaard
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.interpolate import PchipInterpolator

from corrdiff.metrics import Metric

Floats = npt.NDArray[np.float64]

METHOD = "pchip"
RESAMPLES = 500
INTERVAL = (2.5, 97.5)
"""Percentiles between which 95% of the draws lie."""
INTERVAL_PICTURES = 8
"""Of fewer pictures the bootstrap has too few different draws for its percentiles to mean anything."""


@dataclass(frozen=True)
class MetricPoints:
    """A curve's points in one metric, of the pictures that have it in every curve; P points, N pictures."""

    bpp_PN: Floats
    value_PN: Floats
    on_axis: Callable[[Floats], Floats] | None = None
    """What is shown and compared instead of a mean value; the value itself where it is not given."""

    @property
    def bpp(self) -> Floats:
        """The rate of each point: the mean over all pictures."""
        values: Floats = self.bpp_PN.mean(1)
        return values

    @property
    def value(self) -> Floats:
        """The metric at each point: the mean over all pictures, as curves show it."""
        return self.shown(self.value_PN.mean(1))

    def shown(self, values: Floats) -> Floats:
        """Mean values as curves show them."""
        return values if self.on_axis is None else self.on_axis(values)


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


@dataclass(frozen=True)
class Delta:
    """A BD measure and its interval, which is absent where there are fewer than INTERVAL_PICTURES."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Comparison:
    """One curve against the reference's. What cannot be computed is absent."""

    curve: str
    reference: str
    metric: str
    rate: Delta | None
    """BD-rate in per cent: negative is smaller files at like quality."""
    quality: Delta | None
    """BD-PSNR, or the like of another metric: positive is better quality at like rate."""
    quality_range: tuple[float, float] | None
    """Where both curves are, over which the BD-rate is taken."""
    overlap: float
    """That range over the range of the reference."""
    bpp_range: tuple[float, float] | None

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


def curves(table: pd.DataFrame, titles: dict[str, str], metrics: Sequence[Metric]) -> list[SystemCurve]:
    """Make the curve of each system, of a codec one for each decoding and fidelity; `titles` are the anchors', by
    system."""
    whole = whole_pictures(table)
    table = table[table["picture"].isin(whole) & (table["usual_steps"] == True)]  # noqa: E712 (of objects, some None)
    known = {metric: pictures for metric in metrics if (pictures := pictures_with(table, metric.name))}
    found: list[SystemCurve] = []
    keys = ["system", "decoding", "fidelity"]
    key: Any
    for key, group in table.groupby(keys, sort=False, dropna=False):
        system, decoding, fidelity = key
        ours = isinstance(decoding, str)
        names = ["bpp", *(metric.name for metric in known)]
        columns = {name: group.pivot(index="quality", columns="picture", values=name) for name in names}
        points = {
            metric.name: MetricPoints(
                columns["bpp"][pictures].to_numpy(np.float64), columns[metric.name][pictures].to_numpy(np.float64),
                metric.on_axis,
            )
            for metric, pictures in known.items()
        }  # fmt: skip
        found.append(
            SystemCurve(
                name=f"{system}, {decoding_title(decoding, fidelity)}" if ours else titles[system], system=system,
                decoding=decoding if ours else None, fidelity=float(fidelity) if decoding == "corrected" else None,
                quality_P=[float(quality) for quality in columns["bpp"].index], points=points,
            )
        )  # fmt: skip
    return found


def compare(
    curve: SystemCurve, reference: SystemCurve, metric: str, bpp_range: tuple[float, float] | None = None
) -> Comparison:
    """Compare one curve with another of the same pictures, over all rates or a range of the reference's in bpp."""
    points, theirs = (c.points[metric] for c in (curve, reference))
    pictures = points.bpp_PN.shape[1]
    everything = np.arange(pictures)
    one, other = (_mean(p, everything) for p in (points, theirs))
    rate, quality = _deltas(one, other, bpp_range)
    span, overlap = _overlap(one, _between(other, bpp_range))
    rng = np.random.default_rng(0)
    drawn: list[tuple[float | None, float | None]] = []
    if pictures >= INTERVAL_PICTURES and (rate is not None or quality is not None):
        for _ in range(RESAMPLES):
            draw = rng.integers(0, pictures, pictures)
            drawn.append(_deltas(_mean(points, draw), _mean(theirs, draw), bpp_range))
    return Comparison(
        curve.name, reference.name, metric, _with_interval(rate, [r for r, _ in drawn]),
        _with_interval(quality, [q for _, q in drawn]), span, overlap, bpp_range,
    )  # fmt: skip


def _mean(points: MetricPoints, pictures: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Rates and qualities over some of the pictures, the rates rising."""
    bpp = points.bpp_PN[:, pictures].mean(1)
    quality = points.value_PN[:, pictures].mean(1)
    order = np.argsort(bpp)
    return bpp[order], points.shown(quality)[order]


def _between(curve: tuple[Floats, Floats], bpp_range: tuple[float, float] | None) -> tuple[Floats, Floats]:
    """The part of a curve within a range of rates, cut where the range ends; nothing of one whose rates do not rise."""
    bpp, quality = curve
    if bpp_range is None:
        return curve
    low, high = max(bpp_range[0], bpp[0]), min(bpp_range[1], bpp[-1])
    if low >= high or not _rises(bpp):
        return bpp[:0], quality[:0]
    at = PchipInterpolator(np.log(bpp), quality)
    inside = (bpp > low) & (bpp < high)
    ends = np.array([low, high])
    return (
        np.concatenate([ends[:1], bpp[inside], ends[1:]]),
        np.concatenate([at(np.log(ends[:1])), quality[inside], at(np.log(ends[1:]))]),
    )


def _deltas(
    one: tuple[Floats, Floats], reference: tuple[Floats, Floats], bpp_range: tuple[float, float] | None
) -> tuple[float | None, float | None]:
    """BD-rate in per cent, BD of the quality; None where curves do not overlap or do not rise."""
    reference = _between(reference, bpp_range)
    if not all(_rises(bpp) for bpp, _ in (one, reference)):
        return None, None
    rising = all(_rises(quality) for _, quality in (one, reference))
    rate = _known(_bd("bd_rate", one, reference)) if rising and _overlap(one, reference)[0] else None
    swapped = [(quality, bpp) for bpp, quality in (one, reference)]
    quality = _known(_bd("bd_psnr", one, reference)) if _overlap(*swapped)[0] else None
    return rate, quality


def _bd(name: str, one: tuple[Floats, Floats], reference: tuple[Floats, Floats]) -> float:
    return float(getattr(bjontegaard, name)(*reference, *one, METHOD, require_matching_points=False, min_overlap=0.0))


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rises(values: Floats) -> bool:
    """At least two, each above the one before."""
    return len(values) > 1 and bool((np.diff(values) > 0).all())


def _overlap(one: tuple[Floats, Floats], reference: tuple[Floats, Floats]) -> tuple[tuple[float, float] | None, float]:
    """The qualities where both curves are, and their share of the reference's qualities."""
    (_, a), (_, b) = one, reference
    if not len(a) or not len(b):
        return None, 0.0
    low, high = max(a.min(), b.min()), min(a.max(), b.max())
    if low >= high:
        return None, 0.0
    return (float(low), float(high)), float((high - low) / (b.max() - b.min()))


def _with_interval(value: float | None, drawn: list[float | None]) -> Delta | None:
    if value is None:
        return None
    known = [d for d in drawn if d is not None]
    if not known or len(known) < len(drawn):  # without the draws that do not overlap an interval would flatter
        return Delta(value, None, None)
    low, high = np.percentile(known, INTERVAL)
    return Delta(value, float(low), float(high))
