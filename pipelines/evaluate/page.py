"""An evaluation's table -> one page that opens from a file: curves, pictures to compare, savings, numbers, and how."""

from __future__ import annotations

import dataclasses
import importlib.resources
import itertools
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from corrdiff import __version__
from corrdiff.metrics import METRICS, SET_METRICS, Metric, SetMetric, missing
from pipelines.display import curves
from pipelines.display.curves import OURS, Line
from pipelines.evaluate import anchors, comparison
from pipelines.evaluate.comparison import POINT, Comparison, Delta, SystemCurve, decoding_title
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.measure import PEAKS, SECONDS, Place
from pipelines.evaluate.systems import System
from pipelines.evaluate.viewer import viewer
from pipelines.inputs.sources import left_out_sentence

OTHERS = ("#3b4cc0", "#00695c", "#6a1b9a", "#455a64", "#1b5e20", "#0277bd")
"""Colours of the systems that are neither ours nor anchors."""

WORST = 5
"""Pictures that are named where a curve does worst, and where two differ most."""

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
    descriptions: dict[str, str]
    """What makes the files of each system, by its name."""
    table: pd.DataFrame
    sets: pd.DataFrame
    config: EvaluateConfig
    crops: dict[str, int]
    """Of each checkpoint of a training run: how many crops it had seen, by the name of its system."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """Files that are there and are no pictures, by reason."""


class Compared(NamedTuple):
    """Every comparison of curves."""

    with_reference: list[Comparison]
    """Of each curve, over all rates and over LOW_RATES."""
    pairs: list[Comparison]
    """Of each curve with each that comes after it, over all rates."""


def compare_all(every: Sequence[SystemCurve], system: str) -> Compared:
    """Compare every curve with that of a system, and with each other."""
    metrics = list(dict.fromkeys(metric for curve in every for metric in curve.points))
    reference = next((c for c in every if c.system == system and c.decoding is None), None)
    with_reference: list[Comparison] = []
    pairs: list[Comparison] = []
    for metric in metrics:
        fitted = {curve.name: comparison.fit(curve.points[metric]) for curve in every if metric in curve.points}
        if reference is not None and reference.name in fitted:
            theirs = (reference.name, fitted[reference.name])
            with_reference += [
                comparison.compare_fitted((name, curve), theirs, metric, bpp_range)
                for bpp_range in (None, LOW_RATES)
                for name, curve in fitted.items() if name != reference.name
            ]  # fmt: skip
        pairs += [
            comparison.compare_fitted(one, other, metric) for one, other in itertools.combinations(fitted.items(), 2)
        ]
    return Compared(with_reference, pairs)


def page(evaluation: Evaluation, every: Sequence[SystemCurve], compared: Compared) -> str:
    """Make the whole page, as HTML."""
    styles = _styles(every)
    every_metric = (*METRICS, *SET_METRICS)
    known = [metric for metric in every_metric if any(metric.name in curve.points for curve in every)]
    template = importlib.resources.files("pipelines.evaluate").joinpath("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    pictures = len(comparison.whole_pictures(evaluation.table))
    return environment.from_string(template).render(
        title=f"{', '.join(_named_in_title(evaluation.systems))} on {pictures} picture{'s' * (pictures != 1)}",
        subtitle=f"{evaluation.images}{left_out_sentence(evaluation.left_out)}; corrdiff {__version__}",
        errors=failures(evaluation.table),
        pictures=pictures,
        legend=[
            {"name": c.name, "color": styles[c.name].color, "dashed": styles[c.name].dashed, "shown": _usual(c)}
            for c in every
        ],
        charts=[
            {
                "metric": m.name, "title": _title(every, m, pictures),
                "svg": curves.svg("bpp", m.name, _lines(every, m.name, styles)),
            }
            for m in known
        ],
        metrics=[{"name": m.name, "label": curves.label(m.name)} for m in known],
        trainings=[chart for metric in known for chart in _training(evaluation, every, metric)],
        planes=_planes(every),
        fidelities=[f"{f:g}" for f in sorted(evaluation.config.fidelities, reverse=True)],
        viewer=viewer(evaluation.out, evaluation.places, evaluation.systems, evaluation.table),
        reference=_reference_title(evaluation),
        resamples=comparison.RESAMPLES,
        fewest=comparison.INTERVAL_PICTURES,
        comparisons=[_compared(c) for c in compared.with_reference],
        explorer={
            "curves": [c.name for c in every],
            "labels": {m.name: curves.label(m.name) for m in known},
            "points": {c.name: _points(c) for c in every},
            "pairs": [_pair(c, every) for c in compared.pairs],
            "worst": [row for metric in METRICS for curve in every for row in _worst(curve, metric)],
        },
        columns=["quality", "steps", "bpp", *(m.title for m in known)],
        cost_columns=["system", "on", *SECONDS.values(), *PEAKS.values()],
        numbers=_numbers(evaluation, known),
        costs=list(_costs(evaluation)),
        hardware=_machines(evaluation),
        method=list(_method(evaluation)),
    )  # fmt: skip


def _named_in_title(systems: Sequence[System]) -> list[str]:
    """Codecs of ours, where there are some."""
    return [system.title for system in systems if system.ours] or [system.title for system in systems]


def failures(table: pd.DataFrame) -> list[str]:
    """Say of each picture and reason in a sentence what was not measured."""
    failed = table[table["error"].notna()]
    return [
        f"{picture} ({', '.join(group['system'])}): {reason}"
        for (picture, reason), group in failed.groupby(["picture", "error"], sort=False)
    ]


def curves_of(evaluation: Evaluation) -> list[SystemCurve]:
    """Make all curves, under the names by which the page knows them."""
    titles = {system.name: system.title for system in evaluation.systems if not system.ours}
    return comparison.curves(evaluation.table, evaluation.sets, titles, (*METRICS, *SET_METRICS))


def _reference_title(evaluation: Evaluation) -> str:
    wanted = evaluation.config.reference
    return next((system.title for system in evaluation.systems if system.name == wanted), wanted)


def _usual(curve: SystemCurve) -> bool:
    return curve.fidelity is None or curve.fidelity in USUALLY_SHOWN


# --- charts


class Style(NamedTuple):
    """How a curve is drawn."""

    color: str
    dashed: bool


def _styles(every: Sequence[SystemCurve]) -> dict[str, Style]:
    """Codecs in warm colours, one for each decoding and fidelity; all others in cold ones, dashed."""
    ours = [c for c in every if c.decoding is not None]
    known = [c for c in every if c.decoding is None and c.system in anchors.ANCHORS]
    others = [c for c in every if c.decoding is None and c.system not in anchors.ANCHORS]
    usual = sorted(ours, key=lambda c: not _usual(c))  # the colours that differ most go to what is switched on
    return (
        {c.name: Style(OURS[i % len(OURS)], False) for i, c in enumerate(usual)}
        | {c.name: Style(anchors.ANCHORS[c.system].color, True) for c in known}
        | {c.name: Style(OTHERS[i % len(OTHERS)], True) for i, c in enumerate(others)}
    )


def _title(every: Sequence[SystemCurve], metric: Metric | SetMetric, pictures: int) -> str:
    """The title of a chart; where some pictures lack its metric, it says of how many it is."""
    having = next(c.points[metric.name].bpp_PN.shape[1] for c in every if metric.name in c.points)
    few = isinstance(metric, Metric) and having != pictures
    of = f", of the {having} of {pictures} pictures that have it" if few else ""
    return f"{curves.label(metric.name)} over the rate{of}"


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


def _training(
    evaluation: Evaluation, every: Sequence[SystemCurve], metric: Metric | SetMetric
) -> Iterator[dict[str, str]]:
    """A chart of a metric at like bits over the crops that checkpoints have seen, a line a run and decoding."""
    runs = {system.name: system.run for system in evaluation.systems if system.name in evaluation.crops}
    fitted = [(c, comparison.fit(c.points[metric.name])) for c in every if c.system in runs and metric.name in c.points]
    known = [(c, each.quality) for c, each in fitted if each.quality_known_D[0]]
    if len(runs) < 2 or not known or metric.better == "one":
        return
    low, high = max(each.starts[0] for _, each in known), min(each.ends[0] for _, each in known)
    if low > high:
        return
    rate = np.array([(low + high) / 2])
    lines: dict[str, list[tuple[int, float]]] = {}
    for curve, each in known:
        value = float(each.at(np.repeat(rate, len(each.x_DP)))[0])
        name = f"{runs[curve.system]}, {curve.name.removeprefix(f'{curve.system}, ')}"
        shown = value if metric.better == "higher" else float(np.exp(-value))
        lines.setdefault(name, []).append((evaluation.crops[curve.system], shown))
    drawn = [
        Line(name, [x for x, _ in sorted(points)], [y for _, y in sorted(points)], OURS[i % len(OURS)],
             [f"{name}\n{x:,} crops, {curves.label(metric.name)} {y:.4g}" for x, y in sorted(points)])
        for i, (name, points) in enumerate(lines.items())
    ]  # fmt: skip
    title = f"{curves.label(metric.name)} at {np.exp(rate[0]):.2g} bpp: {', '.join(lines)}"
    yield {"title": title, "metric": metric.name, "svg": curves.svg("crops", metric.name, drawn)}


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
        "curve": c.curve, "metric": c.metric, "label": label, "rates": c.rates, "rate": _delta(c.rate, "%", 1),
        "quality": _delta(c.quality, _unit(c.metric), 2), "refusal": c.refusal,
        "span": f"{c.quality_range[0]} to {c.quality_range[1]}" if c.quality_range else "-",
        "overlap": f"{c.overlap:.0%}",
    }  # fmt: skip


def _unit(metric: str) -> str:
    """The unit of a difference of qualities."""
    better = {m.name: m.better for m in (*METRICS, *SET_METRICS)}[metric]
    return "%" if better == "lower" else " dB" if curves.label(metric).endswith(", dB") else ""


def _pair(c: Comparison, every: Sequence[SystemCurve]) -> dict[str, Any]:
    """One comparison for the page's script: what it says, and the pictures where the two differ most."""
    one, other = (next(curve for curve in every if curve.name == name) for name in (c.curve, c.reference))
    apart = sorted(comparison.differences(one, other, c.metric).items(), key=lambda item: item[1])
    lower = {m.name for m in METRICS if m.better == "lower"}
    if c.metric in lower:
        apart.reverse()  # less of it is better
    said = [f"{key}: {value:+.2f}{_unit(c.metric)}" for key, value in apart]
    return {
        "one": c.curve, "other": c.reference, "metric": c.metric, "rate": _delta(c.rate, "%", 1),
        "value": c.rate.value if c.rate else None, "overlap": f"{c.overlap:.0%}", "refusal": c.refusal,
        "certain": bool(c.rate and c.rate.low is not None and c.rate.high is not None
                        and (c.rate.low > 0 or c.rate.high < 0)),
        "behind": said[:WORST], "ahead": said[: -WORST - 1 : -1],
    }  # fmt: skip


def _points(curve: SystemCurve) -> list[dict[str, Any]]:
    """Of each point of a curve its quality, rate and all metrics, for the page's script."""
    rates = next((points.bpp for points in curve.points.values()), np.zeros(0))
    return [
        {
            "quality": f"{quality:g}", "bpp": f"{bpp:.3f}",
            "values": {name: f"{points.value[i]:.4g}" for name, points in curve.points.items()},
        }
        for i, (quality, bpp) in enumerate(zip(curve.quality_P, rates, strict=True))
    ]  # fmt: skip


def _worst(curve: SystemCurve, metric: Metric) -> Iterator[dict[str, Any]]:
    """The pictures that do worst in a metric, at the middle point of a curve."""
    if metric.name not in curve.points:
        return
    points = curve.points[metric.name]
    middle = len(curve.quality_P) // 2
    values = points.value_PN[middle]
    goodness = {"higher": values, "lower": -values, "one": -np.abs(np.log(np.maximum(values, 1e-9)))}[metric.better]
    keys = curve.pictures[metric.name]
    yield {
        "curve": curve.name, "metric": metric.name, "bpp": f"{points.bpp[middle]:.3f}",
        "mean": f"{values.mean():.4g}",
        "pictures": [[keys[i], f"{values[i]:.4g}"] for i in np.argsort(goodness, kind="stable")[:WORST]],
    }  # fmt: skip


def _delta(delta: Delta | None, unit: str, digits: int) -> str:
    if delta is None:
        return "-"
    interval = f" [{delta.low:+.{digits}f}, {delta.high:+.{digits}f}]" if delta.low is not None else ""
    return f"{delta.value:+.{digits}f}{unit}{interval}"


def _numbers(evaluation: Evaluation, known: Sequence[Metric | SetMetric]) -> list[dict[str, Any]]:
    """Groups of rows: a curve's, and those of other numbers of steps. Each metric is of the pictures that have it."""
    table = evaluation.table[evaluation.table["picture"].isin(comparison.whole_pictures(evaluation.table))]
    having = {m.name: comparison.pictures_with(evaluation.table, m.name) for m in known if isinstance(m, Metric)}
    of_sets = {
        _comparable(row, POINT): row for row in evaluation.sets.to_dict("records")
    }  # fmt: skip
    titles = {system.name: system.title for system in evaluation.systems if not system.ours}
    groups: dict[str, list[list[str]]] = {}
    keys = [*POINT, "steps", "usual_steps"]
    key: Any
    for key, rows in table.groupby(keys, sort=False, dropna=False):
        of_point = dict(zip(keys, key, strict=True))
        system, decoding = of_point["system"], of_point["decoding"]
        if system in titles:
            name = titles[system]
        elif not of_point["usual_steps"]:
            name = f"{system}, other numbers of steps"
        else:
            name = f"{system}, {decoding_title(decoding, of_point['fidelity'])}"
        steps = of_point["steps"]
        cells = [f"{of_point['quality']:g}", "" if pd.isna(steps) else f"{steps:g}", f"{rows['bpp'].mean():.4f}"]
        of_set = of_sets.get(_comparable(of_point, POINT), {}) if of_point["usual_steps"] else {}
        for metric in known:
            if isinstance(metric, Metric):
                pictures = having[metric.name]
                values = rows.loc[rows["picture"].isin(pictures), metric.name]
                cells.append(f"{values.mean():.4f}" if pictures else "-")
            else:
                value = of_set.get(metric.name)
                cells.append("-" if value is None or pd.isna(value) else f"{value:.4f}")
        groups.setdefault(name, []).append(cells)
    return [{"name": name, "rows": rows} for name, rows in groups.items()]


def _comparable(row: dict[Any, Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(None if pd.isna(row[name]) else row[name] for name in names)


def _costs(evaluation: Evaluation) -> Iterator[list[str]]:
    """Seconds and memory of each system on each machine, at its usual numbers of steps."""
    titles = {system.name: system.title for system in evaluation.systems}
    usual = evaluation.table[evaluation.table["usual_steps"] == True]  # noqa: E712 (of objects, some None)
    for (system, machine), rows in usual.groupby(["system", "machine"], sort=False):
        seconds = [f"{rows[name].median():.3g}" if rows[name].notna().any() else "-" for name in SECONDS]
        peaks = [f"{rows[name].max():,.0f}" if rows[name].notna().any() else "-" for name in PEAKS]
        yield [titles[str(system)], str(machine), *seconds, *peaks]


def _method(evaluation: Evaluation) -> Iterable[tuple[str, str]]:
    """What was measured, with what."""
    for system in evaluation.systems:
        yield system.title, evaluation.descriptions[system.name]
    yield "bits a pixel", "8 times the size of the whole file over width times height"
    for metric in (*METRICS, *SET_METRICS):
        absent = missing(metric, evaluation.config.weights)
        by = f"{metric.packages[0]} {version(metric.packages[0])}: " if metric.packages and not absent else ""
        network = f"; {metric.network.backbone.file}" if metric.network else ""
        yield metric.title, f"absent: {absent}" if absent else f"{by}{metric.method}{network}"
    scales = "metrics of which less is better by their logarithm, those that are best at 1 by their factor from it"
    yield "BD-rate", f"PCHIP of log(rate) over the quality, between mean curves; {scales}"
    yield "settings", ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(evaluation.config).items() if v is not None)
    yield "machine", f"{_machines(evaluation)}, Python {platform.python_version()}, torch {version('torch')}"


def _machines(evaluation: Evaluation) -> str:
    return " or ".join(str(m) for m in evaluation.table["machine"].unique())
