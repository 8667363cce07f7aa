"""The page and the tables hold every metric that corrdiff/metrics.py names, and say what is not there."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from corrdiff import metrics
from corrdiff.metrics import METRICS, SET_METRICS, Metric, SetMetric
from pipelines.display import curves
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.job import COLUMNS, SET_COLUMNS
from pipelines.evaluate.page import Evaluation, compare_all, curves_of, page
from pipelines.evaluate.systems import System

SYSTEMS = [System("ours", "codec", "s3://bucket/ours"), System("jpeg", "anchor", "jpeg")]
EVERY: tuple[Metric | SetMetric, ...] = (*METRICS, *SET_METRICS)


def _value(metric: Metric | SetMetric, level: int) -> float:
    """Of larger files the better one."""
    return 0.5 + 0.1 * level if metric.better != "lower" else 0.5 - 0.1 * level


def _table(**absent: Any) -> pd.DataFrame:
    """Two pictures through two systems at four qualities."""
    rows = []
    for picture in ("x", "y"):
        for system in SYSTEMS:
            for level in range(4):
                values = {metric.name: _value(metric, level) for metric in METRICS}
                rows.append({
                    "picture": picture, "system": system.name, "width": 64, "height": 64, "quality": level,
                    "fidelity": 1.0 if system.ours else None, "steps": 8 if system.ours else None,
                    "usual_steps": True, "decoding": "corrected" if system.ours else None, "bytes": 100 * 2**level,
                    "bpp": (0.1 if system.ours else 0.2) * 2**level, **values, "machine": "one core", "error": None,
                    **absent,
                })  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS.names)


def _evaluation(table: pd.DataFrame) -> Evaluation:
    config = EvaluateConfig(fidelities=(1.0,), anchors=("jpeg",))
    descriptions = {"ours": "s3://bucket/ours, fingerprint ab12", "jpeg": "a library"}
    return Evaluation("s3://bucket/pictures", "/out", [], SYSTEMS, descriptions, table, _sets(), config, {})


def _sets() -> pd.DataFrame:
    rows = [
        {"system": system.name, "decoding": "corrected" if system.ours else None, "quality": level,
         "fidelity": 1.0 if system.ours else None, **{metric.name: _value(metric, level) for metric in SET_METRICS}}
        for system in SYSTEMS for level in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=SET_COLUMNS.names)


def _page(evaluation: Evaluation) -> str:
    every = curves_of(evaluation)
    return page(evaluation, every, compare_all(every, "jpeg"))


def test_every_metric_has_a_column_a_chart_a_number_and_a_sentence() -> None:
    assert {metric.name for metric in METRICS} <= set(COLUMNS.names)
    text = _page(_evaluation(_table()))
    for metric in EVERY:
        assert f"<h3>{curves.label(metric.name)} over the rate</h3>" in text.replace("&#39;", "'")
        assert f"<th>{metric.title}</th>" in text
        assert f"<tr><td>{metric.title}</td>" in text  # how it was measured


def test_a_metric_that_no_picture_has_is_left_out() -> None:
    (gone, *others) = METRICS
    text = _page(_evaluation(_table(**{gone.name: None})))
    assert f"<th>{gone.title}</th>" not in text
    assert all(f"<th>{metric.title}</th>" in text for metric in others)


def test_a_metric_whose_package_is_not_installed_is_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "version_of", lambda library: None if library == "cvvdp" else "1.0")
    text = _page(_evaluation(_table(cvvdp=None)))
    assert "absent: the package cvvdp is not installed (the extra `perception` has it)" in text


def test_rates_are_compared_in_every_metric_and_every_pair() -> None:
    found = compare_all(curves_of(_evaluation(_table())), "jpeg")
    whole = [c for c in found.with_reference if c.bpp_range is None]
    for comparisons in (whole, found.pairs):
        assert {c.metric for c in comparisons} == {metric.name for metric in EVERY}
        assert all(c.rate is not None and abs(c.rate.value + 50) < 1e-6 for c in comparisons)  # half the bits


def test_a_comparison_that_is_refused_says_why() -> None:
    table = _table()
    ours = table["system"] == "ours"
    table.loc[ours, "psnr_db"] += 10
    table.loc[ours, "ssimulacra2"] = table.loc[ours, "ssimulacra2"].max() - table.loc[ours, "ssimulacra2"]
    text = _page(_evaluation(table))
    assert "the curves share no qualities" in text and "larger files are not better everywhere" in text


def test_systems_of_every_kind_have_a_curve_a_colour_and_a_description() -> None:
    others = [System("mine", "command", "a; b", ("1", "2")), System("theirs", "reconstructions", "/folder", ("1", "2"))]
    evaluation = _evaluation(_table())
    rows = [evaluation.table[evaluation.table["system"] == "jpeg"].assign(system=system.name) for system in others]
    sets = [evaluation.sets[evaluation.sets["system"] == "jpeg"].assign(system=system.name) for system in others]
    evaluation = evaluation._replace(
        systems=[*SYSTEMS, *others], table=pd.concat([evaluation.table, *rows]),
        sets=pd.concat([evaluation.sets, *sets]),
        descriptions={**evaluation.descriptions, "mine": "a; b; points 1, 2", "theirs": "/folder"},
        config=EvaluateConfig(anchors=("jpeg",), command=("mine=a; b",), points=("1,2",), reference="mine"),
    )  # fmt: skip
    every = curves_of(evaluation)
    assert [curve.name for curve in every] == ["ours, fidelity 1", "JPEG", "mine", "theirs"]
    compared = compare_all(every, "mine")
    assert {c.reference for c in compared.with_reference} == {"mine"} and len(compared.pairs) == 6 * len(EVERY)
    text = page(evaluation, every, compared)
    for said in ("a; b; points 1, 2", "BD-rate against mine", 'data-curve-box="theirs"'):
        assert said in text


def test_what_was_not_measured_is_said_once_a_picture_and_reason() -> None:
    table = _table()
    table.loc[table["picture"] == "y", "error"] = "not a picture"
    table = table.drop_duplicates(["picture", "system", "error"], keep="last")
    text = _page(_evaluation(pd.concat([_table().query("picture == 'x'"), table.query("picture == 'y'")])))
    assert "y (ours, jpeg): not a picture" in text and "on 1 picture<" in text


def test_checkpoints_of_a_run_are_drawn_over_the_crops_that_they_had_seen() -> None:
    at = "/out/_checkpoints/first/phase1"
    checkpoints = [System(f"crops-{n}", "codec", f"{at}/crops-{n}") for n in (2000, 1000)]
    assert [system.run for system in checkpoints] == ["first", "first"] and not any(s.run for s in SYSTEMS)
    evaluation = _evaluation(_table())
    ours, sets = (table[table["system"] == "ours"] for table in (evaluation.table, evaluation.sets))
    table = pd.concat([evaluation.table, *(ours.assign(system=system.name) for system in checkpoints)])
    table.loc[table["system"] == "crops-2000", "psnr_db"] += 0.125
    evaluation = evaluation._replace(
        systems=[*SYSTEMS, *checkpoints], table=table, crops={"crops-2000": 2000, "crops-1000": 1000},
        sets=pd.concat([evaluation.sets, *(sets.assign(system=system.name) for system in checkpoints)]),
        descriptions=evaluation.descriptions | {system.name: system.source for system in checkpoints},
    )  # fmt: skip
    text = _page(evaluation)
    assert "Over the training" in text and "PSNR, dB at 0.28 bpp: first, fidelity 1" in text
    tips = [f"{crops:,} crops, PSNR, dB {value}" for crops, value in ((1000, "0.65"), (2000, "0.775"))]
    assert text.index(tips[0]) < text.index(tips[1])
    assert "Over the training" not in _page(_evaluation(_table()))
