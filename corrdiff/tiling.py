"""How a picture is cut into tiles, and put together again.

A tile's core is coded by itself: its factors, z and y. Its networks run on a window that shows OVERLAP pixels more of
each neighbour, whose latents are known by then; in the picture, neighbours fade into each other over 2 * FADE pixels.
So memory is that of a few windows, whatever the picture. An untiled picture is one tile.

Everything is separable, so it is said of one axis (a `Span`) and used for both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrdiff.config import HYPER_STRIDE, LAP, LATENT_STRIDE
from corrdiff.correction import Grid
from corrdiff.picture import Box, Picture

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
    def touching(self) -> int:
        """Count the latent positions of the padded core whose functions reach the core's pixels."""
        return min(self.padded, _up(self.size + LAP, LATENT_STRIDE)) // LATENT_STRIDE

    def shown(self, total: int) -> slice:
        """Say over which pixels of the picture, which has `total`, the tile is laid."""
        return slice(max(0, self.start - FADE), min(total, self.start + self.size + FADE))

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
    def touching(self) -> tuple[int, int]:
        """Count the rows and columns of its latent, from the first on, that have to do with the picture."""
        return self.row.touching, self.column.touching

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

    def rows(self) -> list[list[Tile]]:
        """Give the tiles as they lie."""
        return self._tiles

    def around(self, tile: Tile) -> list[list[Tile]]:
        """Find the tiles that a tile's window shows, itself among them, in rows."""
        i, j = divmod(tile.index, len(self._tiles[0]))
        return [row[max(0, j - 1) : j + 2] for row in self._tiles[max(0, i - 1) : i + 2]]

    def showing(self, box: Box) -> list[Tile]:
        """Find the tiles that are laid over a box, row by row."""
        return [tile for tile in self if all(places.start < places.stop for places in self._in_box(tile, box))]

    def paste(self, picture: Picture, window_HWC: npt.NDArray[np.float32], tile: Tile, box: Box) -> None:
        """Lay what a tile's window (grey levels) has of a box over a picture of the box. Tiles must come row by row."""
        rows, columns = self._in_box(tile, box)
        weight = _ramp(tile.row, rows)[:, None, None] * _ramp(tile.column, columns)[None, :, None]
        under = picture[_from(box.y, rows), _from(box.x, columns)]
        over = window_HWC[_from(tile.row.begin, rows), _from(tile.column.begin, columns)]
        if tile.index == 0:
            under[:] = np.rint(over)  # nothing is there yet
        else:
            under[:] = np.rint(under + weight * (over - under))

    def _in_box(self, tile: Tile, box: Box) -> tuple[slice, slice]:
        """Say over which rows and columns of the picture that are in a box a tile is laid."""
        rows, columns = tile.row.shown(self.height), tile.column.shown(self.width)
        return (
            slice(max(rows.start, box.y), min(rows.stop, box.y + box.height)),
            slice(max(columns.start, box.x), min(columns.stop, box.x + box.width)),
        )


class Latents:
    """Latents of the tiles, made when a window first needs them and let go when the last one has had them."""

    def __init__(self, layout: Layout, load: Callable[[Tile], Tensor], tiles: Iterable[Tile]) -> None:
        """`load(tile)` gives the latent of a tile's padded core, [B, M, h, w]; windows will be those of `tiles`."""
        self._layout, self._load = layout, load
        self._last = {near.index: tile for tile in tiles for row in layout.around(tile) for near in row}
        self._held: dict[int, Tensor] = {}

    def window(self, tile: Tile) -> Tensor:
        """Put the latent under a tile's window together. Tiles must come in their order."""
        around = self._layout.around(tile)
        y_BMhw = torch.cat([torch.cat([self._shown(near, tile) for near in row], dim=3) for row in around], dim=2)
        for near in itertools.chain.from_iterable(around):
            if self._last[near.index] == tile:
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


def _from(first: int, places: slice) -> slice:
    """Count places from another first one."""
    return slice(places.start - first, places.stop - first)


def _ramp(span: Span, places: slice) -> npt.NDArray[np.float32]:
    """Weigh a tile at some places of the picture: 0, a ramp around the core's start, 1."""
    if span.start == 0:
        return np.ones(places.stop - places.start, np.float32)
    position = np.arange(places.start, places.stop, dtype=np.float32) - (span.start - FADE)
    return np.clip((position + 0.5) / (2 * FADE), 0, 1)


def _up(size: int, multiple: int = HYPER_STRIDE) -> int:
    return -(-size // multiple) * multiple
