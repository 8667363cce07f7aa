"""Charts: what a page and MLflow get."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from corrdiff.metrics import METRICS
from pipelines.display import curves
from pipelines.display.curves import Line

LINES = [
    Line("ours <b>&", [0.1, 0.2, 0.4], [25.0, 27.0, 29.0], "#d62728", ["first", "second <i>", "third"]),
    Line("JPEG", [0.2, 0.4], [24.0, 26.0], "#1f77b4", dashed=True),
]


def test_a_chart_names_its_lines_and_its_points() -> None:
    root = ET.fromstring(curves.svg("bpp", "psnr_db", LINES))
    groups = {g.get("data-line"): g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.get("data-line")}
    assert groups.keys() == {"ours <b>&", "JPEG"}
    titles = [t.text for t in groups["ours <b>&"].iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["first", "second <i>", "third"]
    assert [t.text for t in groups["JPEG"].iter("{http://www.w3.org/2000/svg}title")] == []
    text = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "bits a pixel" in text and "PSNR, dB" in text


def test_a_chart_is_the_same_each_time() -> None:
    assert curves.svg("bpp", "psnr_db", LINES) == curves.svg("bpp", "psnr_db", LINES)


def test_every_metric_has_the_title_of_its_axis_and_what_is_none_its_own_name() -> None:
    assert curves.label("bpp") == "bits a pixel"
    assert curves.label("grad_norm") == "grad_norm"
    for metric in METRICS:
        assert curves.label(metric.name) == (metric.axis or metric.title)
