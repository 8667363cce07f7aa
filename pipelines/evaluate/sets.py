"""The metrics of whole sets, at each point of each curve: from what was kept of each picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pandas as pd

from corrdiff.metrics import SET_METRICS
from pipelines.evaluate.comparison import POINT, whole_pictures
from pipelines.evaluate.measure import ORIGINAL, SAMPLES, read_samples, stem
from pipelines.files import storage
from pipelines.files.storage import READERS


@dataclass(frozen=True)
class SetPoint:
    """One point of a curve, and where it is kept of each picture."""

    values: dict[str, Any]
    """Its columns of POINT."""
    stems: tuple[str, ...]
    """Of the files of all pictures that are whole, in their order."""
    row: int
    """Which of its system's rows it is, of each picture."""


def set_points(table: pd.DataFrame) -> Iterator[SetPoint]:
    """List the points of all curves."""
    whole = whole_pictures(table)
    for system, rows in table[table["picture"].isin(whole)].groupby("system", sort=False):
        stems = tuple(stem(picture, str(system)) for picture in whole)
        of_one = rows[rows["picture"] == whole[0]]
        for i, row in enumerate(of_one.to_dict("records")):
            if row["usual_steps"]:
                yield SetPoint({name: None if pd.isna(row[name]) else row[name] for name in POINT}, stems, i)


def measure_set(out: str, point: SetPoint) -> dict[str, Any]:
    """Compute the metrics of one set -> its row of the table of sets."""
    found: dict[str, Any] = dict(point.values)
    of_originals, of_pictures = ORIGINAL, str(point.row)
    kept: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {}

    def read(name: str) -> bytes:
        return storage.read_bytes(storage.join(out, SAMPLES, f"{name}.npz"))

    with ThreadPoolExecutor(READERS) as pool:
        for data in pool.map(read, point.stems):
            for sampling in {metric.sampling for metric in SET_METRICS}:
                originals, pictures = kept.setdefault(sampling, ([], []))
                originals.append(read_samples(data, of_originals, sampling))  # type: ignore[attr-defined]
                pictures.append(read_samples(data, of_pictures, sampling))  # type: ignore[attr-defined]
    for metric in SET_METRICS:
        found[metric.name] = metric.distance(*kept[metric.sampling])
    return found
