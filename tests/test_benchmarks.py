"""The benchmarks are run by hand and take hours; that they still start is seen here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
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


GPU_BARE = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "deepspeed", "lpips", "mlflow", "webdataset", "simplejpeg", "braceexpand"):
            raise ModuleNotFoundError(f"{name} is not here", name=name)

sys.meta_path.insert(0, Absent())
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def _gpu_rows(json_file: Path, *options: str) -> dict[str, list[dict[str, str]]]:
    """What each part of benchmarks.gpu finds on a machine that has little more than PyTorch."""
    command = [sys.executable, "-c", GPU_BARE, *options, "--device", "cpu", "--json", str(json_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=ONE_THREAD)
    assert done.returncode == 0, done.stderr
    return {title.partition(",")[0]: rows for title, rows in json.loads(json_file.read_text()).items()}


def test_what_a_gpu_is_measured_by_runs_on_a_bare_machine_and_says_what_it_lacks(tmp_path: Path) -> None:
    parts = _gpu_rows(tmp_path / "gpu.json", "--quick", "--preset", "tiny")
    failed = {name: [row["failed"] for row in rows if "failed" in row] for name, rows in parts.items()}
    assert failed.pop("engine") == ["ModuleNotFoundError: deepspeed is not here"]
    assert failed.pop("lpips") == ["ModuleNotFoundError: lpips is not here"]
    assert failed == {"facts": [], "exact": [], "codec": [], "train": [], "oom": []}
    assert [row["found"] for row in parts["exact"] if "found" in row] == ["0 of 12 differ"] * 2
    assert [row["found"] for row in parts["oom"]] == ["0 of 4 failed"]
    assert all(float(row["ms/MP"]) > 0 for row in parts["codec"])


def test_a_part_for_which_no_time_is_left_says_so(tmp_path: Path) -> None:
    parts = _gpu_rows(tmp_path / "gpu.json", "facts", "train", "--budget", "0")
    assert [row for rows in parts.values() for row in rows] == [
        {"failed": "no time was left for 15 more"},
        {"failed": "no time was left for 10 more"},
    ]


def test_make_bench_runs_every_benchmark() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert all(f" {name}" in makefile for name in NAMES)
