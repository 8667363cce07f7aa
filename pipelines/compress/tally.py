"""How far a compression is: what is done, and units of which some chunks have come."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from pipelines.compress.chunk import STAGES, Chunk, Done, Whole
from pipelines.dataset.format import Plan
from pipelines.dataset.units import Record
from pipelines.display.progress import Pace, Progress


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
        self._count(-plan.again, -plan.again, 0, 0)  # their rows come once more
        self._pace = Pace(self.megapixels)

    @property
    def megapixels(self) -> float:
        """Of all pictures that are compressed."""
        return self.pixels / 1e6

    @property
    def bpp(self) -> float | None:
        """All bits so far over all pixels, where there are any."""
        return 8 * self.bytes / self.pixels if self.pixels else None

    def add(self, chunk: Chunk[Done]) -> None:
        """Count pictures that came out of the pipeline."""
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
        """Count a unit that was written."""
        self.done.add(record.unit)
        self.seconds["write"] += record.seconds["write"]

    def _count(self, pictures: int, failures: int, size: int, pixels: int) -> None:
        self.pictures += pictures
        self.failures += failures
        self.bytes += size
        self.pixels += pixels

    def progress(self) -> Progress:
        """What a person sees: pictures, or units where nobody knows yet how many pictures are in the tars."""
        rate = [] if self.bpp is None else [f"{self.bpp:.3f} bpp"]
        failed = [f"{self.failures:,} failed"] if self.failures else []
        notes = [*rate, f"{self._pace.of(self.megapixels):.2f} Mpx/s", *failed]
        if self.plan.pictures is None:
            return Progress(
                len(self.done), self.plan.units, "units", ", ".join([f"{self.pictures:,} pictures", *notes])
            )
        return Progress(self.pictures, self.plan.pictures, "pictures", ", ".join(notes))


class Assembly:
    """Units of which some chunks have come."""

    def __init__(self) -> None:
        self._chunks: dict[int, list[Chunk[Done]]] = {}

    def add(self, chunk: Chunk[Done]) -> Whole | None:
        """The unit, where these pictures were its last."""
        chunks = self._chunks.setdefault(chunk.unit, [])
        chunks.append(chunk)
        total = next((c.total for c in chunks if c.total is not None), None)
        if sum(len(c.pictures) for c in chunks) != total:
            return None
        del self._chunks[chunk.unit]
        seconds: collections.Counter[str] = collections.Counter()
        for c in chunks:
            seconds.update(c.seconds)
        left_out = next(c.left_out for c in chunks if c.total is not None)
        return Whole([done for c in chunks for done in c.pictures], dict(seconds), left_out)
