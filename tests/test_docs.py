"""The pages for people lead to files that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md")), *sorted((ROOT / "corrdiff").rglob("*.md"))]

IN_CODE = re.compile(r"`((?:corrdiff|pipelines|cluster|tests|benchmarks|docs)/[\w/.-]*)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_and_links_is_there(page: Path) -> None:
    text = page.read_text()
    assert [name for name in IN_CODE.findall(text) if not (ROOT / name).exists()] == []
    assert [target for target in LINK.findall(text) if not (page.parent / target).exists()] == []
