"""How a picture is cut into tiles, and put together again.

A tile's core is coded by itself: its factors, z and y. Its networks run on a window that shows OVERLAP pixels more of
each neighbour, whose latents are known by then; in the picture, neighbours fade into each other over 2 * FADE pixels.
So memory is that of a few windows, whatever the picture. An untiled picture is one tile.

Everything is separable, so it is said of one axis (a `Span`) and used for both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrdiff.config import HYPER_STRIDE, LATENT_STRIDE
from corrdiff.correction import Grid
from corrdiff.picture import Picture

OVERLAP = 64
"""Pixels of each neighbour that a window shows; a multiple of 64."""
FADE = 32
"""Half the width of the band in which neighbours are mixed; what lies further out in a window is only context."""


class Span(NamedTuple):
    """One tile along one axis, in pixels."""

    start: int
    size: int
    """The core's size."""
    padded: int
    """The core's size up to the next multiple of 64; it is larger than `size` at the picture's end only."""
    begin: int
    end: int
    """The window, in the padded picture."""

    @property
    def core(self) -> slice:
        """Say where the core lies in the picture."""
        return slice(self.start, self.start + self.size)

    @property
    def window(self) -> slice:
        """Say where the window lies in the padded picture."""
        return slice(self.begin, self.end)

    @property
    def core_in_window(self) -> slice:
        """Say where the core lies in its window."""
        return slice(self.start - self.begin, self.start - self.begin + self.size)

    @property
    def latent_in_window(self) -> slice:
        """Say where the padded core lies in its window, in latent positions."""
        start = (self.start - self.begin) // LATENT_STRIDE
        return slice(start, start + self.padded // LATENT_STRIDE)


def spans(total: int, side: int) -> list[Span]:
    """Cut an axis of `total` pixels into tiles; side 0 is one tile."""
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


@dataclass(frozen=True)
class Tile:
    """One tile of a picture. Where something of it lies is said by two slices, of rows and of columns."""

    index: int
    """The tile's place in the file."""
    row: Span
    column: Span
    grid: Grid
    """The factor cells over the core."""

    @property
    def core(self) -> tuple[slice, slice]:
        """Say where its core lies in the picture."""
        return self.row.core, self.column.core

    @property
    def window(self) -> tuple[slice, slice]:
        """Say where its window lies in the padded picture."""
        return self.row.window, self.column.window

    @property
    def core_in_window(self) -> tuple[slice, slice]:
        """Say where its core lies in its window."""
        return self.row.core_in_window, self.column.core_in_window

    @property
    def latent_in_window(self) -> tuple[slice, slice]:
        """Say where its padded core lies in its window, in latent positions."""
        return self.row.latent_in_window, self.column.latent_in_window

    @property
    def hyper_shape(self) -> tuple[int, int]:
        """Count rows and columns of z over its padded core."""
        return self.row.padded // HYPER_STRIDE, self.column.padded // HYPER_STRIDE


class Layout:
    """The tiles of a picture, row by row."""

    def __init__(self, height: int, width: int, side: int, cell: int) -> None:
        """`side` is that of a tile, 0 for none, `cell` that of a factor cell, 0 for one cell in each tile."""
        self.height, self.width = height, width
        rows, columns = spans(height, side), spans(width, side)
        self._tiles = [
            [
                Tile(i * len(columns) + j, row, column, Grid(row.size, column.size, cell))
                for j, column in enumerate(columns)
            ]
            for i, row in enumerate(rows)
        ]

    def __len__(self) -> int:
        return len(self._tiles) * len(self._tiles[0])

    def __iter__(self) -> Iterator[Tile]:
        return itertools.chain.from_iterable(self._tiles)

    def around(self, tile: Tile) -> list[list[Tile]]:
        """Find the tiles that a tile's window shows, itself among them, in rows."""
        i, j = divmod(tile.index, len(self._tiles[0]))
        return [row[max(0, j - 1) : j + 2] for row in self._tiles[max(0, i - 1) : i + 2]]

    def paste(self, picture: Picture, window_HWC: npt.NDArray[np.float32], tile: Tile) -> None:
        """Lay a tile's window (grey levels) over the picture. Tiles must come row by row."""
        row, column = tile.row, tile.column
        bottom = min(self.height, row.start + row.size + FADE)
        right = min(self.width, column.start + column.size + FADE)
        weight = _ramp(row, bottom)[:, None, None] * _ramp(column, right)[None, :, None]
        under = picture[row.begin : bottom, column.begin : right]
        over = window_HWC[: bottom - row.begin, : right - column.begin]
        if tile.index == 0:
            under[:] = np.rint(over)  # nothing is there yet
        else:
            under[:] = np.rint(under + weight * (over - under))


class Latents:
    """Latents of the tiles, made when a window first needs them and let go when the last one has had them."""

    def __init__(self, layout: Layout, load: Callable[[Tile], Tensor]) -> None:
        """`load(tile)` gives the latent of a tile's padded core, [B, M, h, w]."""
        self._layout, self._load = layout, load
        self._held: dict[int, Tensor] = {}

    def window(self, tile: Tile) -> Tensor:
        """Put the latent under a tile's window together. Tiles must come row by row."""
        around = self._layout.around(tile)
        y_BMhw = torch.cat([torch.cat([self._shown(near, tile) for near in row], dim=3) for row in around], dim=2)
        for near in itertools.chain.from_iterable(around):
            if self._layout.around(near)[-1][-1] == tile:
                del self._held[near.index]
        return y_BMhw

    def _shown(self, near: Tile, tile: Tile) -> Tensor:
        """Give what a tile's window shows of a tile near it."""
        if near.index not in self._held:
            self._held[near.index] = self._load(near)
        return self._held[near.index][..., _shared(tile.row, near.row), _shared(tile.column, near.column)]


def _shared(window: Span, core: Span) -> slice:
    """Find the part of a core's latent that a window shows."""
    first, last = max(window.begin, core.start), min(window.end, core.start + core.padded)
    return slice((first - core.start) // LATENT_STRIDE, (last - core.start) // LATENT_STRIDE)


def _ramp(span: Span, stop: int) -> npt.NDArray[np.float32]:
    """Weigh a tile from its window's first pixel to `stop`: 0, a ramp around the core's start, 1."""
    if span.start == 0:
        return np.ones(stop, np.float32)
    position = np.arange(span.begin, stop, dtype=np.float32) - (span.start - FADE)
    return np.clip((position + 0.5) / (2 * FADE), 0, 1)


def _up(size: int) -> int:
    return -(-size // HYPER_STRIDE) * HYPER_STRIDE
