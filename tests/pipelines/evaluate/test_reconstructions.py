"""Pictures that were decoded elsewhere, with a table of their sizes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from corrdiff.errors import UsageError
from corrdiff.images import save_png
from corrdiff.picture import Picture
from pipelines.evaluate import anchors, reconstructions
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.systems import System, description, systems_of

POINTS = ("5", "12.5", "80")


@pytest.fixture
def pictures(draw: Callable[..., Picture]) -> dict[str, Picture]:
    return {"a": draw(40, 56), "nested/b": draw(48, 40, seed=1)}


@pytest.fixture
def folder(pictures: dict[str, Picture], tmp_path: Path) -> Path:
    """What another project left: JPEGs, decoded."""
    root = tmp_path / "theirs"
    rows = []
    for key, picture in pictures.items():
        for point in POINTS:
            file = anchors.encode("jpeg", picture, float(point))
            path = root / point / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(save_png(anchors.decode("jpeg", file)))
            rows.append({"key": key, "point": point, "bytes": len(file), "note": "of no account"})
    pd.DataFrame(rows[::-1]).to_csv(root / "sizes.csv", index=False)
    return root


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_folder_made_from_an_anchor_is_that_anchor_again(
    folder: Path, pictures: dict[str, Picture], kind: str
) -> None:
    if kind == "parquet":
        pd.read_csv(folder / "sizes.csv", dtype={"point": str}).to_parquet(folder / "sizes.parquet")
        (folder / "sizes.csv").unlink()
    config = EvaluateConfig(anchors=(), reconstructions=(f"theirs={folder}",), reference="theirs")
    (system,) = systems_of((), config)
    assert system == System("theirs", "reconstructions", str(folder), POINTS)
    for key, picture in pictures.items():
        for point in POINTS:
            found = reconstructions.code(str(folder), key, point, picture)
            file = anchors.encode("jpeg", picture, float(point))
            assert (found.bytes, found.quality, found.encode_s) == (len(file), float(point), None)
            np.testing.assert_array_equal(found.picture, anchors.decode("jpeg", file))


def test_another_table_is_another_system(folder: Path) -> None:
    system = System("theirs", "reconstructions", str(folder), POINTS)
    before = description(system)
    text = (folder / "sizes.csv").read_text()
    (folder / "sizes.csv").write_text(text.replace("of no account", "of some"))
    reconstructions.read_sizes.cache_clear()
    assert description(system) != before


def test_what_is_not_there_costs_the_picture(folder: Path, pictures: dict[str, Picture]) -> None:
    (folder / "80" / "a.png").unlink()
    (folder / "5" / "a.png").write_bytes(b"no picture")
    (folder / "12.5" / "a.png").write_bytes(save_png(pictures["nested/b"]))
    for key, point, said in (
        ("a", "80", "there is no picture 80/a.png"), ("a", "5", "at point 5: not a picture"),
        ("a", "12.5", "at point 12.5 it is of 40x48, the original is 56x40"),
        ("c", "5", "the table has no size of it at point 5"),
    ):  # fmt: skip
        with pytest.raises(OSError, match=f"^{re.escape(said)}"):
            reconstructions.code(str(folder), key, point, pictures["a"])


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("key,point\na,1\n", "has no column bytes; it has key, point"),
        ("key,point,bytes\na,low,10\n", "row 0: point low and bytes 10 must be numbers"),
        ("key,point,bytes\na,1,10\na,2,ten\n", "row 1: point 2 and bytes ten must be numbers"),
        ("key,point,bytes\na,1,0\n", "row 0: bytes must be at least 1, not 0"),
        ("key,point,bytes\na,1,10\na,1,10\n", "has key a at point 1 twice"),
        ("key,point,bytes\na,1,10\nb,1.0,10\n", "writes one point in two ways, among 1, 1.0"),
        ("", "cannot be read as a table"),
    ],
)
def test_a_table_that_is_not_as_it_has_to_be_is_refused(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "sizes.csv").write_text(table)
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        reconstructions.read_sizes(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is neither sizes\.csv nor sizes\.parquet in "):
        reconstructions.read_sizes(str(tmp_path))
