"""The order of an epoch, and how it is dealt: each picture once, whoever reads, and however often that changes."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.decompress.order import Dealt, EpochOrder, Range, deal, left_after, skip

COUNTS = st.lists(st.integers(0, 9), max_size=12)
LAYOUT = st.tuples(st.integers(1, 4), st.integers(1, 3))
"""Ranks, and loader workers of each."""


def _positions(ranges: list[Range]) -> list[int]:
    return [position for r in ranges for position in range(r.start, r.end)]


@given(count=st.integers(0, 60), layouts=st.lists(LAYOUT, max_size=4), drop_last=st.booleans(), draw=st.data())
def test_whatever_number_of_readers_has_read_what_each_position_comes_once(
    count: int, layouts: list[tuple[int, int]], drop_last: bool, draw: st.DataObject
) -> None:
    history, read = list[Dealt](), list[int]()
    for ranks, workers in [*layouts, (1, 1)]:
        left = left_after(count, history, drop_last)
        shares = deal(left, ranks * workers, ranks, drop_last)
        done = [draw.draw(st.integers(0, len(_positions(share)))) for share in shares]
        for share, number in zip(shares, done, strict=True):
            read += _positions(share)[:number]
            assert _positions(skip(share, number)) == _positions(share)[number:]
        history.append(Dealt(ranks, tuple(done)))
    assert sorted(read + _positions(left_after(count, history, drop_last))) == list(range(count))


@given(count=st.integers(0, 60), layout=LAYOUT, drop_last=st.booleans())
def test_shares_of_ranks_are_equal(count: int, layout: tuple[int, int], drop_last: bool) -> None:
    ranks, workers = layout
    shares = [len(_positions(s)) for s in deal([Range(0, count)], ranks * workers, ranks, drop_last)]
    of_ranks = [sum(shares[rank * workers : (rank + 1) * workers]) for rank in range(ranks)]
    assert max(of_ranks) - min(of_ranks) <= (0 if drop_last else 1)
    assert max(shares) - min(shares) <= 1
    assert sum(shares) == (count - count % ranks if drop_last else count)


@given(counts=COUNTS, seed=st.none() | st.integers(0, 3), epoch=st.integers(0, 2), layout=LAYOUT)
def test_an_epoch_has_each_picture_once_in_an_order_that_no_layout_changes(
    counts: list[int], seed: int | None, epoch: int, layout: tuple[int, int]
) -> None:
    order = EpochOrder(np.array(counts, np.int64), seed, epoch)
    ranks, workers = layout

    def pictures(ranges: list[Range]) -> list[tuple[int, int]]:
        return [(s.unit, place) for s in order.stretches(ranges) for place in s.places]

    whole = pictures([Range(0, order.count)])
    shares = deal([Range(0, order.count)], ranks * workers, ranks, drop_last=False)
    assert list(itertools.chain.from_iterable(map(pictures, shares))) == whole
    every = [(unit, place) for unit, count in enumerate(counts) for place in range(count)]
    assert sorted(whole) == every
    assert whole == every or seed is not None
    starts = [s.start for s in order.stretches([Range(0, order.count)])]
    assert starts == sorted(set(starts))


def test_another_epoch_and_another_seed_have_another_order() -> None:
    counts = np.full(20, 5)
    units = [
        [s.unit for s in EpochOrder(counts, seed, epoch).stretches([Range(0, 100)])]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(order) for order in units}) == 3


@given(rows=st.integers(0, 40), columns=st.integers(0, 40), step=st.sampled_from([1, 16]), position=st.integers(0, 9))
def test_a_corner_lies_in_the_picture_and_on_the_grid(rows: int, columns: int, step: int, position: int) -> None:
    order = EpochOrder(np.array([10]), 3, 1)
    y, x = order.corner(position, rows, columns, step)
    assert (0 <= y <= rows, 0 <= x <= columns, y % step, x % step) == (True, True, 0, 0)
    assert order.corner(position, rows, columns, step) == (y, x)
