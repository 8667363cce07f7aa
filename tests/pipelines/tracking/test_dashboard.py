"""The dashboard is made from the table of gauges, and the table is what runs tell."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipelines.tracking.dashboard import COLUMNS, WIDTH, dashboard, rows
from pipelines.tracking.gauges import GAUGES

ROOT = Path(__file__).parents[3]


def test_the_table_names_what_runs_tell_and_nothing_else() -> None:
    text = (ROOT / "tests" / "surface.txt").read_text()
    frozen = re.findall(r"^corrdiff_(\w+) \(kind, run\)$", text, re.MULTILINE)
    assert sorted(GAUGES) == sorted(frozen)


def test_the_file_is_what_the_table_gives() -> None:
    written = json.loads((ROOT / "cluster" / "monitoring" / "dashboard.json").read_text())
    assert written == dashboard(), "make surface renews it"


def test_every_gauge_has_a_panel() -> None:
    queries = " ".join(panel.query for row in rows().values() for panel in row)
    assert set(re.findall(r"ray_corrdiff_(\w+)", queries)) == set(GAUGES)


def test_panels_do_not_lie_on_each_other() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(WIDTH * COLUMNS))
    assert len({panel["id"] for panel in dashboard()["panels"]}) == len(places)
