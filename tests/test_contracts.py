"""What import-linter cannot say by itself of the contracts in pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
ALLOWED = {"corrdiff.command_line", "corrdiff.errors", "corrdiff.decoders", "corrdiff.uris"}


def test_cluster_may_import_nothing_of_the_codec_that_is_not_named() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if c.get("source_modules") == ["cluster"])
    modules = {f"corrdiff.{path.stem}" for path in (ROOT / "corrdiff").glob("*.py") if path.stem != "__init__"}
    packages = {f"corrdiff.{path.parent.name}" for path in (ROOT / "corrdiff").glob("*/__init__.py")}
    assert set(contract["forbidden_modules"]) == (modules | packages) - ALLOWED | {"pipelines"}
