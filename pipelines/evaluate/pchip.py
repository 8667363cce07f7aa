"""PCHIP (Fritsch and Butland 1984, as SciPy has it) of many curves at once, and what is under them.

The bootstrap interpolates hundreds of draws of every curve; one by one that takes minutes.

Shapes: D curves of P points each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Pchip(NamedTuple):
    """Curves that are interpolated; x rises along each."""

    x_DP: Floats
    y_DP: Floats
    slope_DP: Floats

    @property
    def starts(self) -> Floats:
        """Where each begins, [D]."""
        return self.x_DP[:, 0]

    @property
    def ends(self) -> Floats:
        """Where each ends, [D]."""
        return self.x_DP[:, -1]

    def at(self, place_D: Floats) -> Floats:
        """The value of each curve at a place of its own."""
        s, y, slope, square, cube, _ = self._around(place_D)
        value: Floats = y + s * (slope + s * (square + s * cube))
        return value

    def mean(self, low_D: Floats, high_D: Floats) -> Floats:
        """The mean of each curve between two places of its own."""
        found: Floats = (self._area(high_D) - self._area(low_D)) / (high_D - low_D)
        return found

    def _area(self, place_D: Floats) -> Floats:
        """What is under each curve from its beginning to a place."""
        s, y, slope, square, cube, before = self._around(place_D)
        area: Floats = before + s * (y + s * (slope / 2 + s * (square / 3 + s * cube / 4)))
        return area

    def _around(self, place_D: Floats) -> tuple[Floats, ...]:
        """How far places are into their pieces, the pieces' coefficients, and what is under the pieces before them."""
        piece_D1 = (self.x_DP[:, 1:-1] <= place_D[:, None]).sum(1, keepdims=True)
        h, y, d = np.diff(self.x_DP), self.y_DP, self.slope_DP
        m = np.diff(y) / h
        square, cube = (3 * m - 2 * d[:, :-1] - d[:, 1:]) / h, (d[:, :-1] + d[:, 1:] - 2 * m) / h**2
        pieces = h * (y[:, :-1] + y[:, 1:]) / 2 + h**2 * (d[:, :-1] - d[:, 1:]) / 12
        before = np.concatenate([np.zeros((len(y), 1)), np.cumsum(pieces, 1)], 1)
        taken = (np.take_along_axis(of, piece_D1, 1)[:, 0] for of in (self.x_DP, y, d, square, cube, before))
        start, *rest = taken
        return place_D - start, *rest


def pchip(x_DP: Floats, y_DP: Floats) -> Pchip:
    """Interpolate curves of two points or more."""
    h, m = np.diff(x_DP), np.diff(y_DP) / np.diff(x_DP)
    if m.shape[1] == 1:
        return Pchip(x_DP, y_DP, np.repeat(m, 2, 1))
    wide, narrow = 2 * h[:, 1:] + h[:, :-1], h[:, 1:] + 2 * h[:, :-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = (wide + narrow) / (wide / m[:, :-1] + narrow / m[:, 1:])
    inner = np.where(m[:, :-1] * m[:, 1:] > 0, inner, 0.0)
    first = _end(h[:, 0], h[:, 1], m[:, 0], m[:, 1])
    last = _end(h[:, -1], h[:, -2], m[:, -1], m[:, -2])
    return Pchip(x_DP, y_DP, np.concatenate([first[:, None], inner, last[:, None]], 1))


def _end(h: Floats, next_h: Floats, m: Floats, next_m: Floats) -> Floats:
    """The slope at an end: that of three points, where it keeps the curve's shape."""
    slope = ((2 * h + next_h) * m - h * next_m) / (h + next_h)
    steep = (np.sign(m) != np.sign(next_m)) & (np.abs(slope) > 3 * np.abs(m))
    found: Floats = np.where(np.sign(slope) != np.sign(m), 0.0, np.where(steep, 3 * m, slope))
    return found
