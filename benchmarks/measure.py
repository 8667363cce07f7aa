"""What the benchmarks share: timing in turns, tables, the command line.

Each is run from the root of the repository as python -m benchmarks.NAME.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Row = dict[str, Any]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Make the command line of the benchmark that runs, with what all of them can be told."""
    made = argparse.ArgumentParser(
        prog=f"python -m {_module()}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, help="write the rows there too")
    return made


def again(*options: object) -> list[str]:
    """Make the command that runs this benchmark in a process of its own, with other options."""
    return [sys.executable, "-m", _module(), *map(str, options)]


def metric_history(run_name: str, *metrics: str) -> list[list[tuple[int, float]]]:
    """Read from the MLflow of the environment what one run has of each metric: (step, value), in order."""
    from mlflow import MlflowClient  # where it is missing, nothing is read

    from pipelines.tracking.tracker import EXPERIMENT

    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = '{run_name}'")
    return [sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)) for name in metrics]


def _module() -> str:
    """The name of the benchmark that runs, say benchmarks.tiles."""
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        raise SystemExit("from the root of the repository: python -m benchmarks.NAME")
    return spec.name


def interleaved(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of each action, one after the other in each round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(rounds + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if i:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: list[float], reference: list[float]) -> float:
    """Give the median over the rounds of one time over another."""
    return statistics.median(a / b for a, b in zip(seconds, reference, strict=True))


def report(title: str, rows: list[Row], json_file: Path | None) -> None:
    """Print one table and, where asked for, add it to a JSON file."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_text(row.get(key)) for key in keys] for row in rows]
    widths = [max(len(key), *(len(line[i]) for line in cells)) for i, key in enumerate(keys)]
    print(f"\n{title}")
    for line in [keys, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if json_file:
        tables = json.loads(json_file.read_text()) if json_file.exists() else {}
        json_file.write_text(json.dumps({**tables, title: rows}, indent=1))


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def sample(width: int, height: int) -> npt.NDArray[np.uint8]:
    """Give a photograph (one that comes inside an installed package), repeated by reflection to that size."""
    from corrdiff.images import open_image  # what reads pictures may be missing where no picture is read
    from pipelines.inputs import sources

    image = open_image(sources.read(sources.list_pictures("sample:coffee")[0])).pixels
    pad = [(0, max(0, height - image.shape[0])), (0, max(0, width - image.shape[1])), (0, 0)]
    return np.ascontiguousarray(np.pad(image, pad, "reflect")[:height, :width])
