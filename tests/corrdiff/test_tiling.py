from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrdiff.tiling import FADE, OVERLAP, Latents, Layout, spans


@given(total=st.integers(1, 5000), units=st.integers(0, 20))
def test_cores_cover_an_axis_once_and_windows_show_the_neighbours(total: int, units: int) -> None:
    side = 64 * units + 256 if units else 0
    found = spans(total, side)
    assert [s.start for s in found] == [0, *itertools.accumulate(s.size for s in found[:-1])]
    assert sum(s.size for s in found) == total
    padded_total = -(-total // 64) * 64
    for s in found:
        assert s.padded % 64 == s.begin % 64 == s.end % 64 == 0
        assert s.padded == -(-s.size // 64) * 64
        assert s.begin == max(0, s.start - OVERLAP)
        assert s.end == min(padded_total, s.start + s.padded + OVERLAP)


@settings(max_examples=30)
@given(height=st.integers(1, 900), width=st.integers(1, 900), tiled=st.booleans())
def test_tiles_that_agree_give_the_picture_itself(height: int, width: int, tiled: bool) -> None:
    layout = Layout(height, width, 256 if tiled else 0)
    rng = np.random.default_rng(height)
    original = np.zeros((layout.rows[-1].end, layout.columns[-1].end, 3), np.float32)
    original[:height, :width] = rng.integers(0, 256, (height, width, 3))
    picture = np.full((height, width, 3), 77, np.uint8)
    for i, j in layout:
        row, column = layout.rows[i], layout.columns[j]
        layout.paste(picture, original[row.begin : row.end, column.begin : column.end], i, j)
    assert np.array_equal(picture, original[:height, :width])


def test_neighbours_that_differ_fade_into_each_other() -> None:
    layout = Layout(64, 512, 256)
    picture = np.zeros((64, 512, 3), np.uint8)
    for (i, j), grey in zip(layout, (0.0, 200.0), strict=True):
        layout.paste(picture, np.full((64, layout.columns[j].window, 3), grey, np.float32), i, j)
    line = picture[32, :, 0].astype(int)
    assert not line[: 256 - FADE].any()
    assert (line[256 + FADE :] == 200).all()
    assert 0 <= np.diff(line).min() <= np.diff(line).max() <= 4
    assert abs(line[255] + line[256] - 200) <= 1


@settings(max_examples=30)
@given(height=st.integers(1, 1100), width=st.integers(1, 1100))
def test_a_window_shows_the_latents_of_its_neighbours(height: int, width: int) -> None:
    layout = Layout(height, width, 256)
    rows, columns = layout.rows[-1].end // 16, layout.columns[-1].end // 16
    whole = torch.arange(rows * columns).reshape(1, 1, rows, columns)
    made: list[tuple[int, int]] = []

    def load(i: int, j: int) -> torch.Tensor:
        made.append((i, j))
        row, column = layout.rows[i], layout.columns[j]
        core = whole[..., row.start // 16 :, column.start // 16 :]
        return core[..., : row.padded // 16, : column.padded // 16]

    latents = Latents(layout, load)
    for i, j in layout:
        row, column = layout.rows[i], layout.columns[j]
        expected = whole[..., row.begin // 16 : row.end // 16, column.begin // 16 : column.end // 16]
        assert torch.equal(latents.window(i, j), expected)
    assert sorted(made) == sorted(layout)


@pytest.mark.parametrize(("rows", "columns", "most"), [(6, 6, 18), (1, 30, 3), (30, 1, 3)])
def test_few_latents_are_held_at_a_time(rows: int, columns: int, most: int) -> None:
    layout = Layout(256 * rows, 256 * columns, 256)
    latents = Latents(layout, lambda i, j: torch.zeros(1, 1, 16, 16))
    held = []
    for i, j in layout:
        latents.window(i, j)
        held.append(len(latents._held))
    assert max(held) <= most
    assert held[-1] == 0
