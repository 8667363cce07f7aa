"""How a picture is cut into tiles, and put together again.

A tile's core is coded by itself: its factors, z and y. Its networks run on a window that shows OVERLAP pixels more of
each neighbour, whose latents are known by then; in the picture, neighbours fade into each other over 2 * FADE pixels.
So memory is that of a few windows, whatever the picture. An untiled picture is one tile.

Everything is separable, so it is said of one axis (a `Span`) and used for both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrdiff.config import HYPER_STRIDE, LATENT_STRIDE

OVERLAP = 64
"""Pixels of each neighbour that a window shows; a multiple of 64."""
FADE = 32
"""Half the width of the band in which neighbours are mixed; what lies further out in a window is only context."""


class Span(NamedTuple):
    """One tile along one axis, in pixels."""

    start: int
    size: int
    """Of the core."""
    padded: int
    """The core's size up to the next multiple of 64; it is larger than `size` at the picture's end only."""
    begin: int
    end: int
    """The window, in the padded picture."""

    @property
    def window(self) -> int:
        return self.end - self.begin


def spans(total: int, side: int) -> list[Span]:
    """The tiles along an axis of `total` pixels; side 0 is one tile."""
    padded_total = _up(total)
    side = side or padded_total
    return [
        Span(
            start,
            min(side, total - start),
            min(side, padded_total - start),
            max(0, start - OVERLAP),
            min(padded_total, start + side + OVERLAP),
        )
        for start in range(0, total, side)
    ]


class Layout:
    """The tiles of a picture, row by row."""

    def __init__(self, height: int, width: int, side: int) -> None:
        self.height, self.width = height, width
        self.rows, self.columns = spans(height, side), spans(width, side)

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return itertools.product(range(len(self.rows)), range(len(self.columns)))

    def index(self, i: int, j: int) -> int:
        """Place of a tile in the file."""
        return i * len(self.columns) + j

    def core(self, i: int, j: int) -> tuple[slice, slice]:
        """Where a tile's core lies in its window."""
        row, column = self.rows[i], self.columns[j]
        top, left = row.start - row.begin, column.start - column.begin
        return slice(top, top + row.size), slice(left, left + column.size)

    def paste(self, picture: npt.NDArray[np.uint8], window_HWC: npt.NDArray[np.float32], i: int, j: int) -> None:
        """Lay a tile's window (grey levels) over the picture. Tiles must come row by row."""
        row, column = self.rows[i], self.columns[j]
        bottom = min(self.height, row.start + row.size + FADE)
        right = min(self.width, column.start + column.size + FADE)
        weight = _ramp(row, bottom)[:, None, None] * _ramp(column, right)[None, :, None]
        under = picture[row.begin : bottom, column.begin : right]
        over = window_HWC[: bottom - row.begin, : right - column.begin]
        if row.begin == 0 and column.begin == 0:
            under[:] = np.rint(over)  # the first tile: nothing is there yet
        else:
            under[:] = np.rint(under + weight * (over - under))


class Latents:
    """Latents of the tiles, made when a window first needs them and let go when the last one has had them."""

    def __init__(self, layout: Layout, load: Callable[[int, int], Tensor]) -> None:
        """`load(i, j)` gives the latent of a tile's padded core, [B, M, h, w]."""
        self._layout, self._load = layout, load
        self._held: dict[tuple[int, int], Tensor] = {}

    def window(self, i: int, j: int) -> Tensor:
        """The latent under a tile's window. To be asked for row by row."""
        rows, columns = self._layout.rows, self._layout.columns
        y_BMhw = torch.cat(
            [
                torch.cat(
                    [
                        self._tile(a, b)[..., _shared(rows[i], rows[a]), _shared(columns[j], columns[b])]
                        for b in _near(j, columns)
                    ],
                    dim=3,
                )
                for a in _near(i, rows)
            ],
            dim=2,
        )
        last = len(rows) - 1, len(columns) - 1
        self._held = {
            (a, b): y for (a, b), y in self._held.items() if (min(a + 1, last[0]), min(b + 1, last[1])) > (i, j)
        }
        return y_BMhw

    def _tile(self, i: int, j: int) -> Tensor:
        if (i, j) not in self._held:
            self._held[i, j] = self._load(i, j)
        return self._held[i, j]


def _near(i: int, axis: list[Span]) -> range:
    return range(max(0, i - 1), min(len(axis), i + 2))


def _shared(window: Span, core: Span) -> slice:
    """The part of a core's latent that a window shows."""
    first, last = max(window.begin, core.start), min(window.end, core.start + core.padded)
    return slice((first - core.start) // LATENT_STRIDE, (last - core.start) // LATENT_STRIDE)


def _ramp(span: Span, stop: int) -> npt.NDArray[np.float32]:
    """A tile's weight from its window's first pixel to `stop`: 0, a ramp around the core's start, 1."""
    if span.start == 0:
        return np.ones(stop, np.float32)
    position = np.arange(span.begin, stop, dtype=np.float32) - (span.start - FADE)
    return np.clip((position + 0.5) / (2 * FADE), 0, 1)


def _up(size: int) -> int:
    return -(-size // HYPER_STRIDE) * HYPER_STRIDE
