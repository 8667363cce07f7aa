"""The first stage of a compression: a unit's pictures, opened, those of one size together."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from corrdiff.decoders import silence_decoders
from corrdiff.images import ImageError, open_image
from corrdiff.metadata import Kind, read_metadata
from pipelines.compress.chunk import Chunk, Opened
from pipelines.compress.claim import CompressJob
from pipelines.compress.config import CompressConfig
from pipelines.dataset.attempts import read_again
from pipelines.inputs import units
from pipelines.runtime.resources import Pools
from pipelines.runtime.stages import one_block_each

CHUNK_PIXELS = 1 << 22
"""Pictures that go through the stages together, at most (one picture may have more)."""

READY_PIXELS = 1 << 20
"""Pictures of one size go on when there are this many pixels of them, in whole batches."""

HELD_PIXELS = 1 << 25
"""Of pictures that wait in the reader for others of their size."""


def open_units(numbers: Sequence[int], job: CompressJob, stages: Pools, every: int = 1) -> Any:
    """A Ray dataset of the chunks of some units, or of each `every`-th of their pictures: this stage."""
    return one_block_each([{"unit": n} for n in numbers]).map_batches(
        read_chunks, batch_size=1, **stages.tasks,
        fn_kwargs={"out": job.out, "planned": job.planned, "config": job.config, "every": every},
    )  # fmt: skip


def read_chunks(
    batch: dict[str, Any], out: str, planned: Sequence[units.PlannedUnits], config: CompressConfig, every: int
) -> Iterator[dict[str, Any]]:
    """A Ray task: numbers of units -> their pictures, or each `every`-th of them, opened."""
    silence_decoders()
    for number in batch["unit"].tolist():
        left_out: Counter[str] = Counter()
        unit = units.read_unit(planned, number)
        pictures = read_again(out, unit) if unit.again else units.read_pictures(unit, every, left_out)
        kept = (_keeping(found, config.keep) for found in pictures) if config.keep else pictures
        for chunk in open_unit(number, kept, config.batch, config.max_pixels, left_out):
            yield {"chunk": [chunk]}


def open_unit(
    number: int, pictures: Iterable[units.Found], batch: int, max_pixels: int, left_out: Mapping[str, int] | None = None
) -> Iterator[Chunk[Opened]]:
    """Open a unit's pictures; those of one size come together, in whole batches where there are enough. The last chunk
    says how many there were, and what was left out by then."""
    by_size: dict[tuple[int, ...], list[Opened]] = {}
    sizes: Counter[tuple[int, ...]] = Counter()
    failed: list[Opened] = []
    held = held_failed = total = 0
    busy_s = 0.0
    remaining = iter(pictures)

    def chunk(ready: list[Opened], of: int | None = None) -> Chunk[Opened]:
        nonlocal busy_s
        seconds, busy_s = {"read": busy_s}, 0.0
        return Chunk(number, ready, of, seconds)

    while True:
        started = time.perf_counter()
        found = next(remaining, None)
        opened = _open(total, found, max_pixels) if found else None
        busy_s += time.perf_counter() - started
        if opened is None:
            break
        total += 1
        if opened.pixels is None:
            failed.append(opened)
            held_failed += opened.size
            if held_failed > CHUNK_PIXELS:
                yield chunk(failed)
                failed, held_failed = [], 0
            continue
        alike = by_size.setdefault(opened.pixels.shape, [])
        alike.append(opened)
        held += opened.size
        sizes[opened.pixels.shape] += opened.size
        if len(alike) % batch == 0 and sizes[opened.pixels.shape] >= READY_PIXELS:
            held -= sizes.pop(opened.pixels.shape)
            yield chunk(by_size.pop(opened.pixels.shape))
        elif held > HELD_PIXELS:
            yield from map(chunk, _portions(by_size))
            by_size, held = {}, 0
            sizes.clear()
    yield from map(chunk, _portions(by_size))
    yield chunk(failed, total)._replace(left_out=dict(left_out or {}))


def _keeping(found: units.Found, kinds: Sequence[Kind]) -> units.Found:
    """The same with its file's metadata of some kinds; where something of that name travels already, that stays."""
    if found.data is None:
        return found
    metadata = read_metadata(found.data)
    taken = {ending for ending, _ in found.fields.members}
    kept = tuple((f"picture.{k}", metadata[k]) for k in sorted(set(kinds) & metadata.keys()))
    return found._replace(fields=found.fields._replace(metadata=tuple(m for m in kept if m[0] not in taken)))


def _portions(by_size: dict[tuple[int, ...], list[Opened]]) -> list[list[Opened]]:
    """Everything, of one size after the other, in lists of about CHUNK_PIXELS."""
    portions: list[list[Opened]] = []
    room = 0
    for opened in itertools.chain.from_iterable(by_size.values()):
        if opened.size > room:
            portions.append([])
            room = CHUNK_PIXELS
        portions[-1].append(opened)
        room -= opened.size
    return portions


def _open(place: int, found: units.Found, max_pixels: int) -> Opened:
    if found.data is None:
        return Opened(place, found.key, found.source, None, error=found.error, fields=found.fields)
    try:
        image = open_image(found.data, max_pixels)
    except ImageError as error:
        return Opened(place, found.key, found.source, None, error=str(error), fields=found.fields)
    changes = (*image.changes, *found.fields.left_out)
    return Opened(place, found.key, found.source, image.pixels, changes, fields=found.fields)
