"""One picture through one system: rows of real files, windows to look at, and what fails."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from corrdiff.codec import CorrDiffCodec
from corrdiff.images import save_png
from pipelines.evaluate import anchors
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.job import COLUMNS
from pipelines.evaluate.measure import Measurer, Place, System, stem
from pipelines.evaluate.viewer import viewer
from pipelines.evaluate.windows import WINDOW
from pipelines.files import storage
from pipelines.inputs import units

HEIGHT, WIDTH = 168, 480
CONFIG = EvaluateConfig(qualities=(4,), fidelities=(1.0,), steps=(2,), anchors=("jpeg", "webp"), precision="fp32")
JPEG = System("jpeg", None)

Draw = Callable[..., npt.NDArray[np.uint8]]


@pytest.fixture
def places(draw: Draw, tmp_path: Path) -> list[Place]:
    """A picture to look at, one to measure alone, and one that is none."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, name in enumerate(("a", "b")):
        (pictures / f"{name}.png").write_bytes(save_png(draw(HEIGHT, WIDTH, seed=i)))
    (pictures / "broken.png").write_bytes(b"\x89PNG no more")
    found = units.plan_units(str(pictures), None, 1)
    return [Place(key, unit, shown=key == "a") for unit in found for key in unit.keys]


def _rows(out: Path, directory: str, key: str, system: str) -> Any:
    return storage.read_json(str(out / directory / f"{stem(key, system)}.json"))


def test_an_anchors_rows_are_of_its_own_files(places: list[Place], draw: Draw, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert Measurer(str(out), CONFIG, "cpu")({"place": places[0], "system": JPEG}) == {"errors": 0}
    rows = _rows(out, "_rows", "a", "jpeg")
    assert [row["quality"] for row in rows] == list(anchors.ANCHORS["jpeg"].qualities)
    for row in rows:
        file = anchors.encode("jpeg", draw(HEIGHT, WIDTH, seed=0), row["quality"])
        assert (row["bytes"], row["bpp"]) == (len(file), 8 * len(file) / (HEIGHT * WIDTH))
        assert row.keys() <= set(COLUMNS.names)
        assert row["ms_ssim"] is not None and row["lpips"] is None
        assert row["encode_s_per_mpx"] > 0 and row["decode_peak_mib"] > 0


def test_a_codecs_files_are_decoded_in_every_way_once_a_quality(
    places: list[Place], draw: Draw, codec_dir: Path, codec: CorrDiffCodec, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    measurer = Measurer(str(out), CONFIG, "cpu")
    assert measurer({"place": places[1], "system": System("tiny", str(codec_dir))}) == {"errors": 0}
    rows = _rows(out, "_rows", "b", "tiny")
    usual = codec.config.diffusion.steps
    assert [(row["decoding"], row["steps"], row["usual_steps"]) for row in rows] == [
        ("corrected", usual, True), ("privileged", usual, True), ("uncorrected", usual, True), ("corrected", 2, False),
    ]  # fmt: skip
    original = draw(HEIGHT, WIDTH, seed=1)
    sizes = [len(codec.compress_batch([original], settings)[0].data) for settings in CONFIG.points()]
    assert [row["bytes"] for row in rows] == [sizes[0]] * 3 + [sizes[1]]
    assert not (out / "_windows").exists()  # it is not among those to look at


def test_what_is_no_picture_is_kept_apart_so_that_it_is_tried_again(places: list[Place], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert Measurer(str(out), CONFIG, "cpu")({"place": places[2], "system": JPEG}) == {"errors": 1}
    (row,) = _rows(out, "_failed", "broken", "jpeg")
    assert row["error"].startswith("not a picture") and row["picture"] == "broken" and row["system"] == "jpeg"
    assert not (out / "_rows").exists()


def test_the_viewer_shows_the_middle_of_what_was_decoded_with_every_pixel(
    places: list[Place], draw: Draw, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    systems = [JPEG, System("webp", None)]
    measurer = Measurer(str(out), CONFIG, "cpu")
    for system in systems:
        measurer({"place": places[0], "system": system})
    rows = [row for system in systems for row in _rows(out, "_rows", "a", system.name)]
    table = pd.DataFrame(rows, columns=COLUMNS.names)
    shown = viewer(str(out), places[:2], systems, table)
    (picture,) = shown["pictures"]
    assert (picture["key"], picture["width"], picture["height"]) == ("a", WINDOW, HEIGHT)
    assert shown["systems"] == ["JPEG", "WebP"] and shown["first"] == ["JPEG", "original"]
    left = (WIDTH - WINDOW) // 2
    original = draw(HEIGHT, WIDTH, seed=0)
    _assert_shows(picture["original"]["data"], original[:, left : left + WINDOW])
    rate, name = next(shot.split("/") for shot in picture["shots"] if shot.endswith("JPEG"))
    row = min((r for r in rows if r["system"] == "jpeg"), key=lambda r: abs(np.log(r["bpp"] / float(rate))))
    decoded = anchors.decode("jpeg", anchors.encode("jpeg", original, row["quality"]))
    _assert_shows(picture["shots"][f"{rate}/{name}"]["data"], decoded[:, left : left + WINDOW])
    assert picture["shots"][f"{rate}/{name}"]["caption"].startswith(f"{row['bpp']:.3f} bpp, {row['psnr_db']:.1f} dB")


def _assert_shows(data: str, pixels: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
