"""The benchmarks are run by hand and take hours; that they still start is seen here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
NAMES = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if file.stem not in ("__init__", "measure"))

START_ALL = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        assert ended.code == 0, name
"""


def test_every_benchmark_starts_and_says_how_it_is_run() -> None:
    command = [sys.executable, "-c", START_ALL, *NAMES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert f"usage: python -m benchmarks.{name} [-h] [--json JSON]" in done.stdout


def test_make_bench_runs_every_benchmark() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert all(f" {name}" in makefile for name in NAMES)
