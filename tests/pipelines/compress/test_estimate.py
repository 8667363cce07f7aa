from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from corrdiff.errors import UsageError
from corrdiff.images import save_png
from pipelines.compress.config import CompressConfig
from pipelines.compress.estimate import choose_units, estimate
from pipelines.inputs.units import Kind, Unit
from tests.support.inputs import tar_of

Draw = Callable[..., npt.NDArray[np.uint8]]
QUICK = CompressConfig(steps=1, precision="fp32", unit=2)


def _units(kind: Kind, count: int, pictures: int) -> list[Unit]:
    return [Unit(kind, [f"{kind}-{i}"], [str(i)], pictures=pictures) for i in range(count)]


def test_a_few_units_of_each_kind_are_chosen_and_all_are_counted() -> None:
    every = [*_units("files", 7, 4), *_units("shard", 50, 0), *_units("files", 2, 4)]
    chosen = choose_units(every)
    assert ([u.kind for u in chosen.shards], [u.kind for u in chosen.others]) == (["shard"] * 3, ["files"] * 3)
    assert (chosen.number_of_shards, chosen.number_of_others, chosen.pictures_of_others) == (50, 9, 36)
    assert choose_units(every) == chosen
    assert choose_units(_units("files", 2, 4)).others == _units("files", 2, 4)


def test_every_unit_is_as_likely_to_be_chosen_as_another() -> None:
    """The draw is the same for lists of one length, so the place of a unit is what is shifted."""
    drawn: Counter[str] = Counter()
    units = _units("files", 40, 1)
    for length in range(100, 400):
        for place in range(len(units)):
            several = [units[(i + place) % len(units)] for i in range(length)]
            drawn.update(u.uris[0] for u in choose_units(several).others)
    assert max(drawn.values()) < 1.1 * min(drawn.values())


def test_the_whole_is_estimated_from_a_few_pictures(codec_dir: Path, draw: Draw, tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(save_png(draw(16, 24, i)))
    (tmp_path / "s.tar").write_bytes(tar_of({f"{i}.png": save_png(draw(16, 24, i)) for i in range(4)}))
    found = estimate(str(tmp_path), str(codec_dir), QUICK, workers=2)
    assert (found.pictures, found.sampled) == (9, 4)
    assert found.seconds > 0
    assert 0 < found.output_bytes < found.input_bytes
    half = estimate(str(tmp_path), str(codec_dir), CompressConfig(steps=1, unit=2, target_bpp=2.0), workers=2)
    assert half.output_bytes == round(9 * 2.0 * 16 * 24 / 8)


def test_nothing_to_estimate_is_an_error(codec_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures at"):
        estimate(str(tmp_path), str(codec_dir), QUICK, workers=1)
    (tmp_path / "a.png").write_bytes(b"none")
    with pytest.raises(UsageError, match=r"none of 1 sampled pictures at .* could be opened"):
        estimate(str(tmp_path), str(codec_dir), QUICK, workers=1)
