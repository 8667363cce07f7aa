from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrdiff.picture import Box
from corrdiff.tiling import FADE, OVERLAP, Latents, Layout, Tile, spans


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
    layout = Layout(height, width, 256 if tiled else 0, cell=128)
    rng = np.random.default_rng(height)
    original = np.zeros((-(-height // 64) * 64, -(-width // 64) * 64, 3), np.float32)
    original[:height, :width] = rng.integers(0, 256, (height, width, 3))
    picture = np.full((height, width, 3), 77, np.uint8)
    for tile in layout:
        layout.paste(picture, original[tile.window], tile, Box(0, 0, width, height))
    assert np.array_equal(picture, original[:height, :width])


@settings(max_examples=60)
@given(st.integers(1, 900), st.integers(1, 900), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_a_box_is_what_the_whole_picture_has_there(height: int, width: int, shares: list[float]) -> None:
    layout = Layout(height, width, 256, cell=128)
    rng = np.random.default_rng(height)
    windows = {
        t.index: rng.uniform(0, 255, (t.row.end - t.row.begin, t.column.end - t.column.begin, 3)) for t in layout
    }
    x, y = int(shares[0] * (width - 1)), int(shares[1] * (height - 1))
    box = Box(x, y, 1 + int(shares[2] * (width - x - 1)), 1 + int(shares[3] * (height - y - 1)))
    whole, part = (np.zeros((b.height, b.width, 3), np.uint8) for b in (Box(0, 0, width, height), box))
    for tile in layout:
        layout.paste(whole, windows[tile.index].astype(np.float32), tile, Box(0, 0, width, height))
    for tile in layout.showing(box):
        layout.paste(part, windows[tile.index].astype(np.float32), tile, box)
    assert np.array_equal(part, whole[y : y + box.height, x : x + box.width])


def test_a_box_shows_the_tiles_over_it_and_no_others() -> None:
    layout = Layout(1024, 1024, 256, cell=128)
    for box, expected in [
        (Box(300, 300, 100, 100), [5]), (Box(0, 0, 1, 1), [0]), (Box(256 + FADE, 0, 1, 1), [1]),
        (Box(256 + FADE - 1, 0, 1, 1), [0, 1]), (Box(256, 256, 1, 1), [0, 1, 4, 5]),
        (Box(0, 600, 1024, 10), [8, 9, 10, 11]),
    ]:  # fmt: skip
        assert [tile.index for tile in layout.showing(box)] == expected


def test_latents_of_a_box_are_those_of_its_tiles_and_their_neighbours() -> None:
    layout = Layout(1280, 1280, 256, cell=128)
    made: list[int] = []

    def load(tile: Tile) -> torch.Tensor:
        made.append(tile.index)
        return torch.zeros(1, 1, 16, 16)

    tiles = layout.showing(Box(300, 300, 100, 400))
    latents = Latents(layout, load, tiles)
    for tile in tiles:
        latents.window(tile)
    assert [tile.index for tile in tiles] == [6, 11]
    assert sorted(made) == [0, 1, 2, 5, 6, 7, 10, 11, 12, 15, 16, 17]
    assert not latents._held


def test_neighbours_that_differ_fade_into_each_other() -> None:
    layout = Layout(64, 512, 256, cell=128)
    picture = np.zeros((64, 512, 3), np.uint8)
    for tile, grey in zip(layout, (0.0, 200.0), strict=True):
        window = np.full((64, tile.column.end - tile.column.begin, 3), grey, np.float32)
        layout.paste(picture, window, tile, Box(0, 0, 512, 64))
    line = picture[32, :, 0].astype(int)
    assert not line[: 256 - FADE].any()
    assert (line[256 + FADE :] == 200).all()
    assert 0 <= np.diff(line).min() <= np.diff(line).max() <= 4
    assert abs(line[255] + line[256] - 200) <= 1


@settings(max_examples=30)
@given(height=st.integers(1, 1100), width=st.integers(1, 1100))
def test_a_window_shows_the_latents_of_its_neighbours(height: int, width: int) -> None:
    layout = Layout(height, width, 256, cell=128)
    rows, columns = -(-height // 64) * 4, -(-width // 64) * 4
    whole = torch.arange(rows * columns).reshape(1, 1, rows, columns)
    made: list[int] = []

    def load(tile: Tile) -> torch.Tensor:
        made.append(tile.index)
        core = whole[..., tile.row.start // 16 :, tile.column.start // 16 :]
        return core[..., : tile.row.padded // 16, : tile.column.padded // 16]

    latents = Latents(layout, load, layout)
    for tile in layout:
        row, column = tile.row, tile.column
        expected = whole[..., row.begin // 16 : row.end // 16, column.begin // 16 : column.end // 16]
        assert torch.equal(latents.window(tile), expected)
    assert sorted(made) == [tile.index for tile in layout] == list(range(len(layout)))


@settings(max_examples=30)
@given(height=st.integers(1, 1100), width=st.integers(1, 1100), tiled=st.booleans())
def test_a_tile_knows_where_its_core_lies(height: int, width: int, tiled: bool) -> None:
    x, y = np.meshgrid(np.arange(-(-width // 64) * 64), np.arange(-(-height // 64) * 64))
    place = np.stack([y, x])
    for tile in Layout(height, width, 256 if tiled else 0, cell=128):
        window = place[:, *tile.window]
        core = place[:, :height, :width][:, *tile.core]
        assert np.array_equal(window[:, *tile.core_in_window], core)
        assert core.shape[1:] == (tile.grid.height, tile.grid.width) == (tile.row.size, tile.column.size)
        latent = window[:, ::16, ::16][:, *tile.latent_in_window]
        assert latent.shape[1:] == (tile.row.padded // 16, tile.column.padded // 16)
        assert latent[:, 0, 0].tolist() == core[:, 0, 0].tolist()
        assert tuple(4 * side for side in tile.hyper_shape) == latent.shape[1:]


@pytest.mark.parametrize(("rows", "columns", "most"), [(6, 6, 18), (1, 30, 3), (30, 1, 3)])
def test_few_latents_are_held_at_a_time(rows: int, columns: int, most: int) -> None:
    layout = Layout(256 * rows, 256 * columns, 256, cell=128)
    latents = Latents(layout, lambda tile: torch.zeros(1, 1, 16, 16), layout)
    held = []
    for tile in layout:
        latents.window(tile)
        held.append(len(latents._held))
    assert max(held) <= most
    assert held[-1] == 0


@pytest.mark.parametrize(
    ("size", "touching"), [(1, 1), (8, 1), (9, 2), (40, 3), (41, 4), (64, 4), (65, 5), (72, 5), (73, 6), (481, 31)]
)
def test_a_latent_touches_the_picture_where_its_function_reaches_a_pixel(size: int, touching: int) -> None:
    (span,) = spans(size, 0)
    assert span.touching == touching
    reached = [position for position in range(span.padded // 16) if 16 * position - 8 < size]
    assert len(reached) == touching


def test_latents_inside_a_picture_all_touch_it() -> None:
    assert [span.touching for span in spans(300, 128)] == [8, 8, 4]
