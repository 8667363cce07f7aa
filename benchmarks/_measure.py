"""What the benchmarks share: timing in turns, tables, the command line."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from corrdiff.images import open_image
from pipelines.inputs import sources as pictures

sys.path.append(str(Path(__file__).parents[1]))  # for tests/servers.py

Row = dict[str, Any]


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="write the rows there too")
    return made


def interleaved(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action, one after the other in each round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(rounds + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if i:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: list[float], reference: list[float]) -> float:
    """Median over the rounds of one time over another."""
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
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def sample(width: int, height: int) -> npt.NDArray[np.uint8]:
    """A photograph (one that comes inside an installed package), repeated by reflection to that size."""
    image = open_image(pictures.read(pictures.list_pictures("sample:coffee")[0])).pixels
    pad = [(0, max(0, height - image.shape[0])), (0, max(0, width - image.shape[1])), (0, 0)]
    return np.ascontiguousarray(np.pad(image, pad, "reflect")[:height, :width])
