"""Which pictures of a compressed dataset a reader gets in an epoch, and in which order: pure functions.

An epoch is a sequence of positions, one a picture: units in an order of the seed and the epoch, and the pictures of
each in another. What is left of it is dealt to readers (the loader workers of all ranks) in runs of equal length, so
that a reader reads whole parts but for its first and its last. What each of them has read then says what is left for
any other number of readers: a history of a few numbers is all that a resume needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Range(NamedTuple):
    """Positions from one up to another."""

    start: int
    end: int


class Stretch(NamedTuple):
    """Pictures of one unit that follow each other in an epoch."""

    unit: int
    places: list[int]
    """In the unit."""
    start: int
    """Position of the first."""


class Dealt(NamedTuple):
    """What was left of an epoch, dealt to the loader workers of some ranks, and what each has read of its share."""

    ranks: int
    done: tuple[int, ...]
    """Pictures, of the workers of the first rank, of the second, and so on."""


def deal(left: Sequence[Range], readers: int, ranks: int, drop_last: bool) -> list[list[Range]]:
    """Shares of readers, of so many ranks, that follow each other; ranks' shares differ by one at most, and not at all
    where what is over is dropped."""
    total = _count(left)
    if drop_last:
        total -= total % ranks
    bounds = [total * reader // readers for reader in range(readers + 1)]
    return [_between(left, first, last) for first, last in itertools.pairwise(bounds)]


def left_after(count: int, history: Sequence[Dealt], drop_last: bool) -> list[Range]:
    """What is left of `count` positions where they were dealt and read, and what was left of them dealt again."""
    left = [Range(0, count)]
    for ranks, done in history:
        shares = deal(left, len(done), ranks, drop_last)
        over = _between(left, sum(map(_count, shares)), _count(left))
        left = [r for share, read in zip(shares, done, strict=True) for r in skip(share, read)] + over
    return left


def skip(share: Sequence[Range], read: int) -> list[Range]:
    """What is left of a share of which so many are read."""
    return _between(share, read, _count(share))


def _count(ranges: Sequence[Range]) -> int:
    return sum(r.end - r.start for r in ranges)


def _between(ranges: Sequence[Range], first: int, last: int) -> list[Range]:
    """Of positions one after the other, those from the `first`-th up to the `last`-th."""
    found, at = list[Range](), 0
    for r in ranges:
        start, end = r.start + max(first - at, 0), r.start + min(last - at, r.end - r.start)
        if start < end:
            found.append(Range(start, end))
        at += r.end - r.start
    return found


class EpochOrder:
    """The order of one epoch of units that have so many pictures each; without a seed, as they lie."""

    def __init__(self, counts: npt.NDArray[np.int64], seed: int | None, epoch: int) -> None:
        self._counts, self._seed, self._epoch = counts, seed, epoch
        self._units = self._permuted(0, len(counts))
        self._ends = np.cumsum(counts[self._units])

    @property
    def count(self) -> int:
        """Pictures of the epoch."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def stretches(self, ranges: Sequence[Range]) -> Iterator[Stretch]:
        """What is at some positions, in their order."""
        for r in ranges:
            at = r.start
            while at < r.end:
                number = int(np.searchsorted(self._ends, at, side="right"))
                unit, end = int(self._units[number]), int(self._ends[number])
                first = end - int(self._counts[unit])
                last = min(end, r.end)
                places = self._permuted(unit + 1, end - first)[at - first : last - first]
                yield Stretch(unit, places.tolist(), at)
                at = last

    def corner(self, position: int, rows: int, columns: int, step: int) -> tuple[int, int]:
        """Where the crop of a picture begins that has so many rows and columns more than the crop; a multiple of
        `step`."""
        rng = np.random.default_rng([self._seed or 0, self._epoch, len(self._counts) + 1, position])
        row, column = rng.integers(0, [rows // step + 1, columns // step + 1])
        return int(row) * step, int(column) * step

    def _permuted(self, what: int, count: int) -> npt.NDArray[np.int64]:
        if self._seed is None:
            return np.arange(count)
        return np.random.default_rng([self._seed, self._epoch, what]).permutation(count)
