"""How far a compression is: what is done, and units of which some chunks have come."""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import NamedTuple

from pipelines.compress.encode_code import STAGES
from pipelines.compress.read import Chunk
from pipelines.compress.write import Done
from pipelines.dataset.format import Plan, Record


class Progress(NamedTuple):
    """So far, over all runs."""

    units_done: int
    units_total: int
    pictures_done: int
    pictures_total: int | None
    megapixels: float
    bytes: int
    failures: int


class Tally:
    """What is done, over all runs and in this one."""

    def __init__(self, plan: Plan, records: Iterable[Record]) -> None:
        self.plan = plan
        self.done: set[int] = set()
        self.pictures = self.failures = self.bytes = self.pixels = 0
        self.new_pixels = self.new_pictures = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.first_failure = ""
        for record in records:
            self.done.add(record.unit)
            self._count(record.pictures, record.failures, record.bytes, record.pixels)

    def add(self, chunk: Chunk) -> None:
        """Pictures that came out of the pipeline."""
        rows = [done.row for done in chunk.pictures]
        good = [row for row in rows if row["status"] == "ok"]
        if len(good) < len(rows) and not self.first_failure:
            self.first_failure = next(f"{r['source']}: {r['error']}" for r in rows if r["status"] != "ok")
        pixels = sum(row["width"] * row["height"] for row in good)
        self._count(len(rows), len(rows) - len(good), sum(row["bytes"] for row in good), pixels)
        self.new_pictures += len(rows)
        self.new_pixels += pixels
        for stage, seconds in chunk.seconds.items():
            self.seconds[stage] += seconds

    def write(self, record: Record) -> None:
        self.done.add(record.unit)
        self.seconds["write"] += record.seconds["write"]

    def _count(self, pictures: int, failures: int, size: int, pixels: int) -> None:
        self.pictures += pictures
        self.failures += failures
        self.bytes += size
        self.pixels += pixels

    def progress(self) -> Progress:
        return Progress(
            len(self.done), self.plan.units, self.pictures, self.plan.pictures, self.pixels / 1e6, self.bytes,
            self.failures,
        )  # fmt: skip


class Assembly:
    """Units of which some chunks have come."""

    def __init__(self) -> None:
        self._chunks: dict[int, list[Chunk]] = {}

    def add(self, chunk: Chunk) -> tuple[list[Done], dict[str, float]] | None:
        """The unit's pictures and what the stages took for them, where these were the last."""
        chunks = self._chunks.setdefault(chunk.unit, [])
        chunks.append(chunk)
        total = next((c.total for c in chunks if c.total is not None), None)
        if sum(len(c.pictures) for c in chunks) != total:
            return None
        del self._chunks[chunk.unit]
        seconds: collections.Counter[str] = collections.Counter()
        for c in chunks:
            seconds.update(c.seconds)
        return [done for c in chunks for done in c.pictures], dict(seconds)
