"""The first stage of a compression: a unit's pictures, opened, those of one size together.

It needs no networks, and nothing here imports them: a reader starts in a second.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from corrdiff.images import ImageError, open_image
from pipelines.compress.config import CompressConfig
from pipelines.inputs import units
from pipelines.runtime.resources import Pools

if TYPE_CHECKING:  # it brings torch along
    from corrdiff.codec import Picture

CHUNK_PIXELS = 1 << 22
"""Pictures that go through the stages together, at most (one picture may have more)."""

READY_PIXELS = 1 << 20
"""Pictures of one size go on when there are this many pixels of them, in whole batches."""

HELD_PIXELS = 1 << 25
"""Of pictures that wait in the reader for others of their size."""


class Chunk(NamedTuple):
    """Some pictures of a unit, on their way."""

    unit: int
    pictures: list[Any]
    """`Opened`, `Encoded` or `Done`."""
    total: int | None
    """Of the unit; said by its last chunk alone."""
    seconds: dict[str, float]
    """What each stage took for these."""


class Opened(NamedTuple):
    """A picture, or why it is none."""

    place: int
    """In its unit."""
    key: str
    source: str
    pixels: Picture | None
    changes: tuple[str, ...] = ()
    error: str = ""

    @property
    def size(self) -> int:
        """In pixels."""
        return self.pixels.shape[0] * self.pixels.shape[1] if self.pixels is not None else 0


def open_units(numbers: Sequence[int], directory: str, config: CompressConfig, stages: Pools, every: int = 1) -> Any:
    """A Ray dataset of the chunks of some units, or of each `every`-th of their pictures: this stage."""
    import ray.data

    return ray.data.from_items([{"unit": n} for n in numbers], override_num_blocks=len(numbers)).map_batches(
        read_chunks, batch_size=1, **stages.tasks,
        fn_kwargs={"directory": directory, "config": config, "every": every},
    )  # fmt: skip


def read_chunks(batch: dict[str, Any], directory: str, config: CompressConfig, every: int) -> Iterator[dict[str, Any]]:
    """A Ray task: numbers of units -> their pictures, or each `every`-th of them, opened."""
    for number in batch["unit"].tolist():
        pictures = units.read_pictures(units.read_unit(directory, number), every)
        for chunk in open_unit(number, pictures, config.batch, config.max_pixels):
            yield {"chunk": [chunk]}


def open_unit(number: int, pictures: Iterable[units.Found], batch: int, max_pixels: int) -> Iterator[Chunk]:
    """Open a unit's pictures; those of one size come together, in whole batches where there are enough. The last chunk
    says how many there were."""
    by_size: dict[tuple[int, ...], list[Opened]] = {}
    failed: list[Opened] = []
    held = total = 0
    busy_s = 0.0
    remaining = iter(pictures)

    def chunk(some: list[Opened], of: int | None = None) -> Chunk:
        nonlocal busy_s
        seconds, busy_s = {"read": busy_s}, 0.0
        return Chunk(number, some, of, seconds)

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
            continue
        alike = by_size.setdefault(opened.pixels.shape, [])
        alike.append(opened)
        held += opened.size
        if len(alike) % batch == 0 and len(alike) * opened.size >= READY_PIXELS:
            held -= len(alike) * opened.size
            yield chunk(by_size.pop(opened.pixels.shape))
        elif held > HELD_PIXELS:
            yield from map(chunk, _portions(by_size))
            by_size, held = {}, 0
    yield from map(chunk, _portions(by_size))
    yield chunk(failed, total)


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
        return Opened(place, found.key, found.source, None, error=found.error)
    try:
        image = open_image(found.data, max_pixels)
    except ImageError as error:
        return Opened(place, found.key, found.source, None, error=str(error))
    return Opened(place, found.key, found.source, image.pixels, image.changes)
