"""An evaluation's table -> one page that opens from a file: curves, pictures to compare, savings, numbers, and how."""

from __future__ import annotations

import base64
import dataclasses
import importlib.resources
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd

from corrdiff import __version__, metrics, perceptual
from pipelines.display import curves
from pipelines.display.curves import OURS, THEIRS, Line
from pipelines.evaluate import anchors, comparison
from pipelines.evaluate.comparison import Comparison, Curve, Delta, way
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.measure import METRICS, RATES, WINDOW, WINDOWS, Place, System, nearest_rows, stem
from pipelines.files import storage

COMPARED = ("psnr_db", "ms_ssim")
LOW_RATES = (0.1, 0.4)
"""Of the reference, in bpp: where perceptual codecs are used, compared apart."""

USUALLY_SHOWN = (1.0, 0.5, 0.0)
"""Fidelities whose curves are switched on at first."""

_NAMES = {
    "psnr_db": "PSNR, dB", "ms_ssim": "MS-SSIM", "texture_error": "texture error", "lpips": "LPIPS",
    "high_frequency": "high frequencies", "encode_s_per_mpx": "encode, s/Mpx", "decode_s_per_mpx": "decode, s/Mpx",
    "encode_peak_mib": "encode, MiB", "decode_peak_mib": "decode, MiB",
}  # fmt: skip


class Evaluation(NamedTuple):
    """Everything that the page is made from."""

    images: str
    out: str
    places: list[Place]
    systems: list[System]
    fingerprints: dict[str, str]
    """Of the codecs, by system."""
    table: pd.DataFrame
    config: EvaluateConfig


def compare_all(every: Sequence[Curve], system: str) -> list[Comparison]:
    """Every curve against that of an anchor, over all rates and over LOW_RATES."""
    reference = next((c for c in every if c.system == system and c.decoding is None), None)
    if reference is None:
        return []
    return [
        comparison.compare(curve, reference, metric, bpp_range)
        for metric in COMPARED if metric in reference.points
        for bpp_range in (None, LOW_RATES)
        for curve in every if curve is not reference
    ]  # fmt: skip


def page(evaluation: Evaluation, every: Sequence[Curve], comparisons: Sequence[Comparison]) -> str:
    """The whole page as HTML."""
    styles = _styles(every)
    known = [m for m in METRICS if any(m in c.points for c in every)]
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
            {"title": _title(every, m, pictures), "svg": curves.svg("bpp", m, _lines(every, m, styles))} for m in known
        ],
        planes=_planes(every),
        fidelities=[f"{f:g}" for f in sorted(evaluation.config.fidelities, reverse=True)],
        viewer=_viewer(evaluation),
        reference=anchors.ANCHORS[evaluation.config.reference].title,
        resamples=comparison.RESAMPLES,
        fewest=comparison.INTERVAL_PICTURES,
        comparisons=[_compared(c) for c in comparisons],
        columns=["quality", "steps", "bpp", *(_NAMES[m] for m in [*known, *_COSTS])],
        numbers=_numbers(evaluation, known),
        hardware=_machines(evaluation),
        method=list(_method(evaluation)),
    )  # fmt: skip


def failures(table: pd.DataFrame) -> list[str]:
    """A sentence for each picture and reason."""
    failed = table[table["error"].notna()]
    return [
        f"{picture} ({', '.join(group['system'])}): {reason}"
        for (picture, reason), group in failed.groupby(["picture", "error"], sort=False)
    ]


def curves_of(evaluation: Evaluation) -> list[Curve]:
    """All of them, under the names by which the page knows them."""
    titles = {name: anchor.title for name, anchor in anchors.ANCHORS.items()}
    return comparison.curves(evaluation.table, titles, METRICS)


def _usual(curve: Curve) -> bool:
    return curve.fidelity is None or curve.fidelity in USUALLY_SHOWN


# --- charts


class Style(NamedTuple):
    color: str
    dashed: bool


def _styles(every: Sequence[Curve]) -> dict[str, Style]:
    """Codecs in warm colours, a way to use them each; anchors in cold ones, dashed."""
    ours = [c for c in every if c.decoding is not None]
    theirs = [c for c in every if c.decoding is None]
    usual = sorted(ours, key=lambda c: not _usual(c))  # the colours that differ most go to what is switched on
    return {c.name: Style(OURS[i % len(OURS)], False) for i, c in enumerate(usual)} | {
        c.name: Style(THEIRS[i % len(THEIRS)], True) for i, c in enumerate(theirs)
    }


def _title(every: Sequence[Curve], metric: str, pictures: int) -> str:
    """Of a chart; where some pictures lack its metric, of how many it is."""
    having = next(c.points[metric].bpp_PN.shape[1] for c in every if metric in c.points)
    of = "" if having == pictures else f", of the {having} of {pictures} pictures that have it"
    return f"{curves.LABELS[metric]} over the rate{of}"


def _lines(every: Sequence[Curve], metric: str, styles: dict[str, Style]) -> list[Line]:
    lines: list[Line] = []
    for curve in every:
        if metric in curve.points:
            points = curve.points[metric]
            y = metrics.ms_ssim_db(points.value) if metric == "ms_ssim" else points.value
            tips = [
                f"{curve.name}, quality {q:g}\n{b:.3f} bpp, {curves.LABELS[metric]} {v:.4g}"
                for q, b, v in zip(curve.quality_P, points.bpp, y, strict=True)
            ]
            style = styles[curve.name]
            lines.append(Line(curve.name, points.bpp.tolist(), y.tolist(), style.color, tips, style.dashed))
    return lines


def _planes(every: Sequence[Curve]) -> list[dict[str, str]]:
    """Of each codec: a line a quality level, along the fidelities; D alone and uncorrected beside them."""
    planes: list[dict[str, str]] = []
    for system in dict.fromkeys(c.system for c in every if c.decoding is not None):
        mine = [c for c in every if c.system == system and c.decoding is not None]
        dial = sorted((c for c in mine if c.fidelity is not None), key=lambda c: -(c.fidelity or 0.0))
        natural = "lpips" if all("lpips" in c.points for c in mine) else "texture_error"
        if len(dial) < 2 or natural not in dial[0].points or "psnr_db" not in dial[0].points:
            continue
        lines: list[Line] = []
        for i, quality in enumerate(dial[0].quality_P):
            x, y = ([float(c.points[m].value[i]) for c in dial] for m in ("psnr_db", natural))
            tips = [
                f"quality {quality:g}, {c.name.split(', ')[-1]}\n{c.points['psnr_db'].bpp[i]:.3f} bpp" for c in dial
            ]
            lines.append(Line(f"{system}, quality {quality:g}", x, y, _shade(i, len(dial[0].quality_P)), tips))
        for curve, color in zip([c for c in mine if c.fidelity is None], ("#1f77b4", "#2ca02c"), strict=False):
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


# --- pictures


def _viewer(evaluation: Evaluation) -> dict[str, Any]:
    """What the page's script needs to show two systems at like bits."""
    titles = {s.name: s.name if s.codec else anchors.ANCHORS[s.name].title for s in evaluation.systems}
    names: dict[str, None] = {}
    shown: list[dict[str, Any]] = []
    table = evaluation.table
    whole = set(comparison.whole_pictures(table))
    for place in evaluation.places:
        if not place.shown or place.key not in whole:
            continue
        shots: dict[str, dict[str, str]] = {}
        for system in evaluation.systems:
            rows = _records(table[(table["picture"] == place.key) & (table["system"] == system.name)])
            for rate in RATES:
                for curve, row in nearest_rows(rows, rate).items():
                    name = (
                        titles[system.name]
                        if system.codec is None
                        else f"{system.name}, {way(row['decoding'], row['fidelity'])}"
                    )
                    names[name] = None
                    file = f"{stem(place.key, system.name)}-{curve}-{rate:g}.webp"
                    shots[f"{rate:g}/{name}"] = {"data": _window(evaluation.out, file), "caption": _caption(row)}
        first = stem(place.key, evaluation.systems[0].name)
        height, width = (min(WINDOW, int(rows[0][side])) for side in ("height", "width"))
        shown.append({
            "key": place.key, "width": width, "height": height, "shots": shots,
            "original": {"data": _window(evaluation.out, f"{first}-original.webp"), "caption": "every pixel"},
        })  # fmt: skip
    ours = [n for n in names if n not in titles.values()]
    first_two = [*ours[:1], *[n for n in names if n in titles.values()][:1], "original", "original"][:2]
    return {"pictures": shown, "systems": list(names), "rates": [f"{r:g}" for r in RATES], "first": first_two}


def _caption(row: dict[str, Any]) -> str:
    psnr = "no loss" if pd.isna(row["psnr_db"]) else f"{row['psnr_db']:.1f} dB"
    return f"{row['bpp']:.3f} bpp, {psnr}, texture error {row['texture_error']:.2f}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _window(out: str, name: str) -> str:
    return base64.b64encode(storage.read_bytes(storage.join(out, WINDOWS, name))).decode()


# --- tables

_COSTS = ("encode_s_per_mpx", "decode_s_per_mpx", "encode_peak_mib", "decode_peak_mib")


def _compared(c: Comparison) -> dict[str, str]:
    return {
        "curve": c.curve, "metric": curves.LABELS[c.metric], "rates": c.rates,
        "rate": _delta(c.rate, "%", 1), "quality": _delta(c.quality, " dB", 2),
        "span": f"{c.quality_range[0]:.1f} to {c.quality_range[1]:.1f}" if c.quality_range else "no overlap",
        "overlap": f"{c.overlap:.0%}",
    }  # fmt: skip


def _delta(delta: Delta | None, unit: str, digits: int) -> str:
    if delta is None:
        return "-"
    interval = f" [{delta.low:+.{digits}f}, {delta.high:+.{digits}f}]" if delta.low is not None else ""
    return f"{delta.value:+.{digits}f}{unit}{interval}"


def _numbers(evaluation: Evaluation, known: Sequence[str]) -> list[dict[str, Any]]:
    """Groups of rows: a curve's, and those of other numbers of steps. Each metric is of the pictures that have it."""
    table = evaluation.table[evaluation.table["picture"].isin(comparison.whole_pictures(evaluation.table))]
    having = {m: comparison.pictures_with(evaluation.table, m) for m in known}
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
            name = f"{system}, {way(decoding, fidelity)}"
        cells = [f"{quality:g}", "" if pd.isna(steps) else f"{steps:g}", f"{rows['bpp'].mean():.4f}"]
        cells += [f"{rows.loc[rows['picture'].isin(having[m]), m].mean():.4f}" if having[m] else "-" for m in known]
        cells += [f"{rows[m].median():.3g}" for m in _COSTS[:2]] + [f"{rows[m].max():,.0f}" for m in _COSTS[2:]]
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
    yield "PSNR", f"10 log10(255² / MSE), MSE over all RGB values of a picture; NumPy {np.__version__}"
    window = "RGB, five scales, window 11, sigma 1.5; curves and BD in -10 log10(1 - MS-SSIM)"
    yield "MS-SSIM", f"pytorch_msssim {version('pytorch-msssim')}: {window}; absent where a side is under 161 pixels"
    yield (
        "texture error",
        (
            "ours: mean absolute logarithm of the ratio of local energies in bands of a Laplacian pyramid; 0 is "
            "the same texture everywhere; our encoder chooses its factors by it, no anchor does"
        ),
    )
    yield "high frequencies", "ours: energy of the finest of those bands over the original's; 1 is as much of it"
    weights = perceptual.lpips_weights(evaluation.config.lpips_weights)
    said = f"lpips {version('lpips')}, version 0.1 with AlexNet from {weights.name}" if weights else None
    yield "LPIPS", said or f"absent: {perceptual.missing_lpips_sentence()}"
    yield "BD-rate", f"bjontegaard {version('bjontegaard')}, {comparison.METHOD}, between the curves of the means"
    yield "settings", ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(evaluation.config).items() if v is not None)
    yield "machine", f"{_machines(evaluation)}, Python {platform.python_version()}, torch {version('torch')}"


def _machines(evaluation: Evaluation) -> str:
    return " or ".join(str(m) for m in evaluation.table["machine"].unique())
