"""An evaluation's table -> rate-distortion curves, and how much one saves over another.

BD-rate and BD-PSNR (VCEG-M33, VCEG-AI11) are the package `bjontegaard`'s, interpolated by PCHIP over the logarithm of
the rate, between mean curves: of each point, rate and quality are means over the pictures. Intervals are percentiles of
the bootstrap over pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import bjontegaard
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.interpolate import PchipInterpolator

from corrdiff.metrics import ms_ssim_db

Floats = npt.NDArray[np.float64]

METHOD = "pchip"
RESAMPLES = 500
INTERVAL = (2.5, 97.5)
"""Percentiles: of 95%."""
INTERVAL_PICTURES = 8
"""Of fewer the bootstrap has too few different draws for its percentiles to mean anything."""


@dataclass(frozen=True)
class Points:
    """A curve's points in one metric, of the pictures that have it in every curve; P points, N pictures."""

    bpp_PN: Floats
    value_PN: Floats

    @property
    def bpp(self) -> Floats:
        values: Floats = self.bpp_PN.mean(1)
        return values

    @property
    def value(self) -> Floats:
        values: Floats = self.value_PN.mean(1)
        return values


@dataclass(frozen=True)
class Curve:
    """One way to use a system, over its quality levels."""

    name: str
    system: str
    decoding: str | None
    fidelity: float | None
    quality_P: list[float]
    points: dict[str, Points]
    """By metric; those that some picture has in every curve."""


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
        """In words."""
        return "all" if self.bpp_range is None else f"{self.bpp_range[0]:g} to {self.bpp_range[1]:g} bpp"


def way(decoding: str, fidelity: float) -> str:
    """To use a codec, as people read it."""
    return {"privileged": "D alone", "uncorrected": "uncorrected"}.get(decoding, f"fidelity {fidelity:g}")


def whole_pictures(table: pd.DataFrame) -> list[str]:
    """Pictures of which every system has every point."""
    bad = set(table.loc[table["error"].notna(), "picture"])
    return [str(p) for p in table["picture"].unique() if p not in bad]


def pictures_with(table: pd.DataFrame, metric: str) -> list[str]:
    """Whole pictures of which a metric is known at every point: of small ones MS-SSIM is not, of lossless ones PSNR."""
    lacking = set(table.loc[table[metric].isna(), "picture"])
    return [picture for picture in whole_pictures(table) if picture not in lacking]


def curves(table: pd.DataFrame, titles: dict[str, str], metrics: Sequence[str]) -> list[Curve]:
    """Of each system and way to use it; `titles` are of the anchors, by system."""
    whole = whole_pictures(table)
    table = table[table["picture"].isin(whole) & (table["usual_steps"] == True)]  # noqa: E712 (of objects, some None)
    known = {metric: some for metric in metrics if (some := pictures_with(table, metric))}
    found: list[Curve] = []
    keys = ["system", "decoding", "fidelity"]
    key: Any
    for key, group in table.groupby(keys, sort=False, dropna=False):
        system, decoding, fidelity = key
        ours = isinstance(decoding, str)
        columns = {m: group.pivot(index="quality", columns="picture", values=m) for m in ["bpp", *known]}
        found.append(
            Curve(
                name=f"{system}, {way(decoding, fidelity)}" if ours else titles[system], system=system,
                decoding=decoding if ours else None, fidelity=float(fidelity) if decoding == "corrected" else None,
                quality_P=[float(q) for q in columns["bpp"].index],
                points={
                    m: Points(columns["bpp"][some].to_numpy(np.float64), columns[m][some].to_numpy(np.float64))
                    for m, some in known.items()
                },
            )
        )  # fmt: skip
    return found


def compare(curve: Curve, reference: Curve, metric: str, bpp_range: tuple[float, float] | None = None) -> Comparison:
    """One curve against another of the same pictures, over all rates or a range of the reference's."""
    points, theirs = (c.points[metric] for c in (curve, reference))
    pictures = points.bpp_PN.shape[1]
    everything = np.arange(pictures)
    one, other = (_mean(p, metric, everything) for p in (points, theirs))
    rate, quality = _deltas(one, other, bpp_range)
    span, overlap = _overlap(one, _between(other, bpp_range))
    rng = np.random.default_rng(0)
    drawn: list[tuple[float | None, float | None]] = []
    if pictures >= INTERVAL_PICTURES and (rate is not None or quality is not None):
        for _ in range(RESAMPLES):
            some = rng.integers(0, pictures, pictures)
            drawn.append(_deltas(_mean(points, metric, some), _mean(theirs, metric, some), bpp_range))
    return Comparison(
        curve.name, reference.name, metric, _with_interval(rate, [r for r, _ in drawn]),
        _with_interval(quality, [q for _, q in drawn]), span, overlap, bpp_range,
    )  # fmt: skip


def _mean(points: Points, metric: str, pictures: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Rates and qualities, the rates rising."""
    bpp = points.bpp_PN[:, pictures].mean(1)
    quality = points.value_PN[:, pictures].mean(1)
    order = np.argsort(bpp)
    return bpp[order], (ms_ssim_db(quality) if metric == "ms_ssim" else quality)[order]


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
