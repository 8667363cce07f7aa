"""What others build on does not change by accident: scripts have options in them, notebooks columns and metrics."""

from __future__ import annotations

import difflib
from pathlib import Path

from tests.support.surface import surface

FROZEN = Path(__file__).parent / "surface.txt"


def test_options_columns_metrics_and_tags_are_those_of_surface_txt() -> None:
    differences = difflib.unified_diff(
        FROZEN.read_text().splitlines(), surface().splitlines(), "tests/surface.txt", "the code", lineterm="", n=0
    )
    said = "\n".join(differences)
    assert not said, (
        f"the public surface is another one:\n{said}\nwhere that is meant, say it in CHANGELOG.md and run make surface"
    )
