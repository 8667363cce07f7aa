"""Charts: what a page and MLflow get."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image

from pipelines.display import curves
from pipelines.display.curves import Line
from pipelines.train import validation

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


def _found(shift: float) -> dict[str, float]:
    return {
        f"val/q{q}/{name}": value
        for q in (1, 4, 7)
        for name, value in {
            "bpp": 0.1 * q, "psnr_db": 20 + q + shift, "psnr_db_decoder": 21 + q + shift,
            "psnr_db_uncorrected": 19 + q + shift, "texture_error": 1.0,
        }.items()
    }  # fmt: skip


def test_the_curve_of_a_training_moves_over_its_earlier_ones() -> None:
    one, two = (np.asarray(Image.open(io.BytesIO(validation.draw(history)))) for history in (
        [_found(0)], [_found(0), _found(5)],
    ))  # fmt: skip
    assert one.shape == two.shape  # PSNR and texture error; what was not measured has no panel
    assert (one != two).any()
    wide = np.asarray(Image.open(io.BytesIO(validation.draw([{**_found(0), "val/q4/lpips": 0.3}]))))
    assert wide.shape[1] > one.shape[1]
