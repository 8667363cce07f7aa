"""An evaluation's table -> one page that opens from a file: curves, pictures to compare, savings, numbers, and how."""

from __future__ import annotations

import dataclasses
import importlib.resources
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from corrdiff import __version__
from corrdiff.metrics import METRICS, Metric
from corrdiff.perceptual import lpips_weights, missing_lpips_sentence
from pipelines.display import curves
from pipelines.display.curves import OURS, Line
from pipelines.evaluate import anchors, comparison
from pipelines.evaluate.comparison import Comparison, Delta, SystemCurve, decoding_title
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.measure import PEAKS, SECONDS, Place, System
from pipelines.evaluate.viewer import viewer

COMPARED = tuple(metric.name for metric in METRICS if metric.better == "higher")
"""Metrics of which there are BD measures: those that rise with the rate."""

LOW_RATES = (0.1, 0.4)
"""Rates of the reference in bpp where perceptual codecs are used; curves are compared there apart."""

USUALLY_SHOWN = (1.0, 0.5, 0.0)
"""Fidelities whose curves are switched on at first."""


class Evaluation(NamedTuple):
    """Everything that the page is made from."""

    images: str
    out: str
    places: list[Place]
    systems: list[System]
    fingerprints: dict[str, str]
    """Of each codec, by the name of its system."""
    table: pd.DataFrame
    config: EvaluateConfig


def compare_all(every: Sequence[SystemCurve], system: str) -> list[Comparison]:
    """Compare every curve with that of an anchor, over all rates and over LOW_RATES."""
    reference = next((c for c in every if c.system == system and c.decoding is None), None)
    if reference is None:
        return []
    return [
        comparison.compare(curve, reference, metric, bpp_range)
        for metric in COMPARED if metric in reference.points
        for bpp_range in (None, LOW_RATES)
        for curve in every if curve is not reference
    ]  # fmt: skip


def page(evaluation: Evaluation, every: Sequence[SystemCurve], comparisons: Sequence[Comparison]) -> str:
    """Make the whole page, as HTML."""
    styles = _styles(every)
    known = [metric for metric in METRICS if any(metric.name in curve.points for curve in every)]
    template = importlib.resources.files("pipelines.evaluate").joinpath("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    pictures = len(comparison.whole_pictures(evaluation.table))
    return environment.from_string(template).render(
        title=f"{', '.join(s.name for s in evaluation.systems if s.codec)} on {pictures} pictures",
        subtitle=f"{evaluation.images}; corrdiff {__version__}",
        errors=failures(evaluation.table),
        pictures=pictures,
        legend=[
            {"name": c.name, "color": styles[c.name].color, "dashed": styles[c.name].dashed, "shown": _usual(c)}
            for c in every
        ],
        charts=[
            {"title": _title(every, m.name, pictures), "svg": curves.svg("bpp", m.name, _lines(every, m.name, styles))}
            for m in known
        ],
        planes=_planes(every),
        fidelities=[f"{f:g}" for f in sorted(evaluation.config.fidelities, reverse=True)],
        viewer=viewer(evaluation.out, evaluation.places, evaluation.systems, evaluation.table),
        reference=anchors.ANCHORS[evaluation.config.reference].title,
        resamples=comparison.RESAMPLES,
        fewest=comparison.INTERVAL_PICTURES,
        comparisons=[_compared(c) for c in comparisons],
        columns=["quality", "steps", "bpp", *(m.title for m in known), *SECONDS.values(), *PEAKS.values()],
        numbers=_numbers(evaluation, known),
        hardware=_machines(evaluation),
        method=list(_method(evaluation)),
    )  # fmt: skip


def failures(table: pd.DataFrame) -> list[str]:
    """Say of each picture and reason in a sentence what was not measured."""
    failed = table[table["error"].notna()]
    return [
        f"{picture} ({', '.join(group['system'])}): {reason}"
        for (picture, reason), group in failed.groupby(["picture", "error"], sort=False)
    ]


def curves_of(evaluation: Evaluation) -> list[SystemCurve]:
    """Make all curves, under the names by which the page knows them."""
    titles = {name: anchor.title for name, anchor in anchors.ANCHORS.items()}
    return comparison.curves(evaluation.table, titles, METRICS)


def _usual(curve: SystemCurve) -> bool:
    return curve.fidelity is None or curve.fidelity in USUALLY_SHOWN


# --- charts


class Style(NamedTuple):
    """How a curve is drawn."""

    color: str
    dashed: bool


def _styles(every: Sequence[SystemCurve]) -> dict[str, Style]:
    """Codecs in warm colours, one for each decoding and fidelity; anchors in cold ones, dashed."""
    ours = [c for c in every if c.decoding is not None]
    theirs = [c for c in every if c.decoding is None]
    usual = sorted(ours, key=lambda c: not _usual(c))  # the colours that differ most go to what is switched on
    return {c.name: Style(OURS[i % len(OURS)], False) for i, c in enumerate(usual)} | {
        c.name: Style(anchors.ANCHORS[c.system].color, True) for c in theirs
    }


def _title(every: Sequence[SystemCurve], metric: str, pictures: int) -> str:
    """The title of a chart; where some pictures lack its metric, it says of how many it is."""
    having = next(c.points[metric].bpp_PN.shape[1] for c in every if metric in c.points)
    of = "" if having == pictures else f", of the {having} of {pictures} pictures that have it"
    return f"{curves.label(metric)} over the rate{of}"


def _lines(every: Sequence[SystemCurve], metric: str, styles: dict[str, Style]) -> list[Line]:
    lines: list[Line] = []
    for curve in every:
        if metric in curve.points:
            points = curve.points[metric]
            y = points.value
            tips = [
                f"{curve.name}, quality {q:g}\n{b:.3f} bpp, {curves.label(metric)} {v:.4g}"
                for q, b, v in zip(curve.quality_P, points.bpp, y, strict=True)
            ]
            style = styles[curve.name]
            lines.append(Line(curve.name, points.bpp.tolist(), y.tolist(), style.color, tips, style.dashed))
    return lines


def _planes(every: Sequence[SystemCurve]) -> list[dict[str, str]]:
    """A chart of each codec: a line a quality level, along the fidelities; D alone and uncorrected beside them."""
    planes: list[dict[str, str]] = []
    for system in dict.fromkeys(c.system for c in every if c.decoding is not None):
        of_system = [c for c in every if c.system == system and c.decoding is not None]
        dial = sorted((c for c in of_system if c.fidelity is not None), key=lambda c: -(c.fidelity or 0.0))
        natural = "lpips" if all("lpips" in c.points for c in of_system) else "texture_error"
        if len(dial) < 2 or natural not in dial[0].points or "psnr_db" not in dial[0].points:
            continue
        lines: list[Line] = []
        for i, quality in enumerate(dial[0].quality_P):
            x, y = ([float(c.points[m].value[i]) for c in dial] for m in ("psnr_db", natural))
            tips = [
                f"quality {quality:g}, {c.name.split(', ')[-1]}\n{c.points['psnr_db'].bpp[i]:.3f} bpp" for c in dial
            ]
            lines.append(Line(f"{system}, quality {quality:g}", x, y, _shade(i, len(dial[0].quality_P)), tips))
        for curve, color in zip([c for c in of_system if c.fidelity is None], ("#1f77b4", "#2ca02c"), strict=False):
            tips = [f"{curve.name}, quality {q:g}" for q in curve.quality_P]
            x, y = (curve.points[m].value.tolist() for m in ("psnr_db", natural))
            lines.append(Line(f"{curve.name} (plane)", x, y, color, tips, dashed=True))
        title = f"{system}: full lines are qualities, from light to dark; dashed blue is D alone, green uncorrected"
        planes.append({"title": title, "svg": curves.svg("psnr_db", natural, lines)})
    return planes


def _shade(i: int, count: int) -> str:
    share = (i + 1) / count
    light, dark = np.array([246, 178, 150]), np.array([120, 12, 20])
    return "#" + "".join(f"{int(v):02x}" for v in light + (dark - light) * share)


# --- tables


def _compared(c: Comparison) -> dict[str, str]:
    label = curves.label(c.metric)
    return {
        "curve": c.curve, "metric": label, "rates": c.rates, "rate": _delta(c.rate, "%", 1),
        "quality": _delta(c.quality, " dB" if label.endswith(", dB") else "", 2),
        "span": f"{c.quality_range[0]:.1f} to {c.quality_range[1]:.1f}" if c.quality_range else "no overlap",
        "overlap": f"{c.overlap:.0%}",
    }  # fmt: skip


def _delta(delta: Delta | None, unit: str, digits: int) -> str:
    if delta is None:
        return "-"
    interval = f" [{delta.low:+.{digits}f}, {delta.high:+.{digits}f}]" if delta.low is not None else ""
    return f"{delta.value:+.{digits}f}{unit}{interval}"


def _numbers(evaluation: Evaluation, known: Sequence[Metric]) -> list[dict[str, Any]]:
    """Groups of rows: a curve's, and those of other numbers of steps. Each metric is of the pictures that have it."""
    table = evaluation.table[evaluation.table["picture"].isin(comparison.whole_pictures(evaluation.table))]
    having = {metric.name: comparison.pictures_with(evaluation.table, metric.name) for metric in known}
    groups: dict[str, list[list[str]]] = {}
    keys = ["system", "decoding", "fidelity", "quality", "steps", "usual_steps"]
    key: Any
    for key, rows in table.groupby(keys, sort=False, dropna=False):
        system, decoding, fidelity, quality, steps, usual = key
        if not isinstance(decoding, str):
            name = anchors.ANCHORS[system].title
        elif not usual:
            name = f"{system}, other numbers of steps"
        else:
            name = f"{system}, {decoding_title(decoding, fidelity)}"
        cells = [f"{quality:g}", "" if pd.isna(steps) else f"{steps:g}", f"{rows['bpp'].mean():.4f}"]
        cells += [
            f"{rows.loc[rows['picture'].isin(pictures), metric].mean():.4f}" if pictures else "-"
            for metric, pictures in having.items()
        ]
        cells += [f"{rows[cost].median():.3g}" for cost in SECONDS] + [f"{rows[cost].max():,.0f}" for cost in PEAKS]
        groups.setdefault(name, []).append(cells)
    return [{"name": name, "rows": rows} for name, rows in groups.items()]


def _method(evaluation: Evaluation) -> Iterable[tuple[str, str]]:
    """What was measured, with what."""
    for system in evaluation.systems:
        if system.codec:
            yield system.name, f"{system.codec}, fingerprint {evaluation.fingerprints[system.name]}"
        else:
            yield anchors.ANCHORS[system.name].title, anchors.description(system.name)
    yield "bits a pixel", "8 times the size of the whole file over width times height"
    weights = lpips_weights(evaluation.config.lpips_weights)
    for metric in METRICS:
        if metric.missing:
            yield metric.title, f"absent: {metric.missing}"
            continue
        library = f"{metric.library} {version(metric.library)}: " if metric.library else ""
        method = f"{library}{metric.method}"
        if metric.name == "lpips":
            method = f"{method} from {weights.name}" if weights else f"absent: {missing_lpips_sentence()}"
        yield metric.title, method
    yield "BD-rate", f"bjontegaard {version('bjontegaard')}, {comparison.METHOD}, between the curves of the means"
    yield "settings", ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(evaluation.config).items() if v is not None)
    yield "machine", f"{_machines(evaluation)}, Python {platform.python_version()}, torch {version('torch')}"


def _machines(evaluation: Evaluation) -> str:
    return " or ".join(str(m) for m in evaluation.table["machine"].unique())
