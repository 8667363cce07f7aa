"""The report's page in a browser: filters, one point in all charts, two systems side by side, keys, print, the dark."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from corrdiff.images import save_png
from corrdiff.picture import Picture
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.job import COLUMNS, SET_COLUMNS, numbers
from pipelines.evaluate.measure import Measurer, Place, stem
from pipelines.evaluate.page import Evaluation, compare_all, curves_of, page
from pipelines.evaluate.sets import measure_set, set_points
from pipelines.evaluate.systems import description, systems_of
from pipelines.files import storage
from pipelines.inputs import units

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt install chromium)")

KEYS = ("a", "b")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, draw: Callable[..., Picture]) -> Path:
    """A report on two anchors and two pictures."""
    root = tmp_path_factory.mktemp("browser")
    (root / "pictures").mkdir()
    for i, key in enumerate(KEYS):
        (root / "pictures" / f"{key}.png").write_bytes(save_png(draw(96, 208, seed=i)))
    out, config = str(root / "out"), EvaluateConfig(anchors=("jpeg", "webp"))
    systems = systems_of((), config)
    found = [(key, unit) for unit in units.plan_units(str(root / "pictures"), None, 1) for key in unit.keys]
    places = [Place(key, unit, True, i) for i, (key, unit) in enumerate(found)]
    measurer, rows = Measurer(out, config, len(places)), []
    for place in places:
        for system in systems:
            assert measurer({"place": place, "system": system}) == {"errors": 0}
            rows += storage.read_json(str(root / "out" / "_rows" / f"{stem(place.key, system.name)}.json"))
    table = numbers(pd.DataFrame(rows, columns=COLUMNS.names), COLUMNS)
    of_sets = [measure_set(out, point) for point in set_points(table)]
    sets = numbers(pd.DataFrame(of_sets, columns=SET_COLUMNS.names), SET_COLUMNS)
    descriptions = {system.name: description(system) for system in systems}
    evaluation = Evaluation("pictures", out, places, systems, descriptions, table, sets, config, {})
    curves = curves_of(evaluation)
    (root / "index.html").write_text(page(evaluation, curves, compare_all(curves, "jpeg")))
    return root / "index.html"


@pytest.fixture
def opened(report: Path) -> Iterator[Any]:
    """The page, which must have no trouble and ask for nothing by the time that it is closed."""
    from playwright.sync_api import sync_playwright

    trouble: list[str] = []
    requests: list[str] = []
    with sync_playwright() as play, play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as browser:
        shown = browser.new_page(viewport={"width": 1300, "height": 1000})
        shown.on("console", lambda message: trouble.append(message.text))
        shown.on("pageerror", lambda error: trouble.append(str(error)))
        shown.on("request", lambda request: requests.append(request.url))
        shown.goto(report.as_uri())
        yield shown
    assert trouble == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_what_is_switched_off_is_hidden_in_charts_and_tables(opened: Any) -> None:
    lines = opened.locator('[data-line="WebP"]')
    rows = opened.locator('tr[data-curve="WebP"][data-metric="psnr_db"]')
    assert lines.count() > 3 and rows.first.is_visible()
    opened.locator('[data-curve-box="WebP"]').uncheck()
    assert not any(lines.nth(i).is_visible() for i in range(lines.count())) and not rows.first.is_visible()
    assert "WebP" not in opened.locator("#pairs").inner_text() + opened.locator("#worst").inner_text()
    opened.locator('[data-all="curve"]').click()
    assert lines.first.is_visible() and rows.first.is_visible()
    chart = opened.locator('.charts > [data-metric="psnr_db"]')
    opened.locator('[data-metric-box="psnr_db"]').uncheck()
    assert not chart.is_visible() and not rows.first.is_visible()
    opened.locator('[data-none="metric"]').click()
    assert opened.locator(".charts.linked > div:visible").count() == 0


def test_a_point_under_the_mouse_is_shown_in_every_chart(opened: Any) -> None:
    charts = opened.locator('.charts.linked > div:has([data-line="JPEG"])').count()
    mark = opened.locator('.charts [data-metric="psnr_db"] [data-line="JPEG"] [data-point="3"]')
    mark.hover(force=True)
    assert opened.locator("use.here").count() == charts > 3
    assert {opened.locator("use.here").nth(i).get_attribute("data-point") for i in range(charts)} == {"3"}
    said = opened.locator("#readout").inner_text()
    assert said.startswith("JPEG, quality 12: ") and "PSNR, dB" in said and "sliced Wasserstein distance" in said
    opened.mouse.move(5, 5)
    assert opened.locator("use.here").count() == 0 and opened.locator("#readout").inner_text() == ""


def test_the_charts_obey_the_arrow_keys(opened: Any) -> None:
    opened.locator(".charts.linked svg").first.focus()
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"):
        opened.keyboard.press(key)
        said.append(opened.locator("#readout").inner_text().split(":")[0])
    assert said == ["JPEG, quality 2", "JPEG, quality 5", "WebP, quality 5", "WebP, quality 0"]


def test_two_systems_are_side_by_side_by_mouse_and_by_keys(opened: Any) -> None:
    stage = opened.locator("#stage")
    stage.scroll_into_view_if_needed()
    assert opened.locator("#left option").all_text_contents()[0] == "original"
    opened.locator("#left").select_option("original")
    opened.locator("#right").select_option("JPEG")
    seen = set()
    for place in (2, 100, 206):
        stage.click(position={"x": place * 4, "y": 50})
        seen.add(stage.screenshot())
    assert len(seen) == 3
    assert opened.locator("#left-image").evaluate("image => image.naturalWidth") == 208
    assert opened.locator("#zoom").input_value() == "4" and stage.bounding_box()["width"] == 832

    position = opened.locator("#position")
    position.focus()
    before = int(position.input_value())
    opened.keyboard.press("ArrowLeft")
    assert int(position.input_value()) == before - 10
    opened.keyboard.press("]")
    assert opened.locator("#picture").input_value() == KEYS[1]
    rate = opened.locator("#rate").input_value()
    opened.keyboard.press(".")
    assert opened.locator("#rate").input_value() != rate
    left, right = opened.locator("#left").input_value(), opened.locator("#right").input_value()
    opened.keyboard.press("x")
    assert (opened.locator("#left").input_value(), opened.locator("#right").input_value()) == (right, left)


def test_pairs_and_worst_pictures_are_said(opened: Any) -> None:
    opened.locator("#pair-metric").select_option("psnr_db")
    cells = opened.locator("#pairs button")
    assert cells.count() == 2
    cells.first.click()
    said = opened.locator("#pair").inner_text()
    assert said.startswith("JPEG against WebP, PSNR, dB: ") and "furthest ahead in" in said
    opened.locator("#worst-metric").select_option("texture_error")
    assert opened.locator("#worst tr").count() == 3
    opened.locator("#worst a", has_text=KEYS[1]).first.click()
    assert opened.locator("#picture").input_value() == KEYS[1]


def test_it_is_dark_in_a_dark_room_and_light_on_paper(opened: Any) -> None:
    def brightness(what: str) -> float:
        color = opened.evaluate(f"getComputedStyle(document.body).{what}")
        return float(np.mean([float(part) for part in color.split("(")[1].strip(")").split(",")[:3]]))

    opened.emulate_media(color_scheme="dark")
    assert brightness("backgroundColor") < 50 and brightness("color") > 200
    text = opened.locator(".charts svg text").first
    assert "230" in text.evaluate("element => getComputedStyle(element).fill")  # as the text around it
    opened.emulate_media(media="print", color_scheme="dark")
    assert brightness("backgroundColor") == 255 and brightness("color") == 0
    for hidden in ("#position", ".controls", "button"):
        assert not opened.locator(hidden).first.is_visible()
    assert opened.locator("details:not([open]) table").first.is_visible()
