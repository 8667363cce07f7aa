"""The page and the tables hold every metric that corrdiff/metrics.py names, and say what is not there."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from corrdiff import metrics
from corrdiff.metrics import METRICS
from pipelines.display import curves
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.job import COLUMNS
from pipelines.evaluate.measure import System
from pipelines.evaluate.page import Evaluation, compare_all, curves_of, page

SYSTEMS = [System("ours", "s3://bucket/ours"), System("jpeg", None)]


def _table(**absent: Any) -> pd.DataFrame:
    """Two pictures through two systems at four qualities."""
    rows = []
    for picture in ("x", "y"):
        for system in SYSTEMS:
            for level in range(4):
                values = {metric.name: 0.5 + 0.1 * level for metric in METRICS}
                rows.append({
                    "picture": picture, "system": system.name, "width": 64, "height": 64, "quality": level,
                    "fidelity": 1.0 if system.codec else None, "steps": 8 if system.codec else None,
                    "usual_steps": True, "decoding": "corrected" if system.codec else None, "bytes": 100 * 2**level,
                    "bpp": (0.1 if system.codec else 0.2) * 2**level, **values, "machine": "one core", "error": None,
                    **absent,
                })  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS.names)


def _evaluation(table: pd.DataFrame) -> Evaluation:
    config = EvaluateConfig(fidelities=(1.0,), anchors=("jpeg",))
    return Evaluation("s3://bucket/pictures", "/out", [], SYSTEMS, {"ours": "ab12"}, table, config)


def _page(evaluation: Evaluation) -> str:
    every = curves_of(evaluation)
    return page(evaluation, every, compare_all(every, "jpeg"))


def test_every_metric_has_a_column_a_chart_a_number_and_a_sentence() -> None:
    assert {metric.name for metric in METRICS} <= set(COLUMNS.names)
    text = _page(_evaluation(_table()))
    for metric in METRICS:
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


def test_rates_are_compared_in_every_metric_that_rises_with_them() -> None:
    found = compare_all(curves_of(_evaluation(_table())), "jpeg")
    assert {c.metric for c in found} == {metric.name for metric in METRICS if metric.better == "higher"}
    whole = [c for c in found if c.bpp_range is None]
    assert all(c.rate is not None and abs(c.rate.value + 50) < 1e-6 for c in whole)  # half the bits at every quality


def test_what_was_not_measured_is_said_once_a_picture_and_reason() -> None:
    table = _table()
    table.loc[table["picture"] == "y", "error"] = "not a picture"
    table = table.drop_duplicates(["picture", "system", "error"], keep="last")
    text = _page(_evaluation(pd.concat([_table().query("picture == 'x'"), table.query("picture == 'y'")])))
    assert "y (ours, jpeg): not a picture" in text and "on 1 pictures" in text
