"""One picture through one system: rows of real files, windows to look at, and what fails."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from corrdiff import sliced_wasserstein
from corrdiff.codec import CorrDiffCodec
from corrdiff.errors import JobError
from corrdiff.images import save_png
from pipelines.evaluate import anchors
from pipelines.evaluate.coded import Coded
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.job import COLUMNS
from pipelines.evaluate.measure import CodecStage, Measurer, Place, read_samples, samples, stem
from pipelines.evaluate.sets import measure_set, set_points
from pipelines.evaluate.systems import System
from pipelines.evaluate.viewer import viewer
from pipelines.evaluate.windows import WINDOW
from pipelines.files import storage
from pipelines.inputs import units

HEIGHT, WIDTH = 168, 480
CONFIG = EvaluateConfig(qualities=(4,), fidelities=(1.0,), steps=(2,), anchors=("jpeg", "webp"), precision="fp32")
JPEG = System("jpeg", "anchor", "jpeg")

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
    keys = [(key, unit) for unit in found for key in unit.keys]
    return [Place(key, unit, key == "a", i) for i, (key, unit) in enumerate(keys)]


def _rows(out: Path, directory: str, key: str, system: str) -> Any:
    return storage.read_json(str(out / directory / f"{stem(key, system)}.json"))


def test_an_anchors_rows_are_of_its_own_files(places: list[Place], draw: Draw, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert Measurer(str(out), CONFIG, 3)({"place": places[0], "system": JPEG}) == {"errors": 0}
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
    measurer = Measurer(str(out), CONFIG, 3)
    assert measurer({"place": places[1], "system": System("tiny", "codec", str(codec_dir))}) == {"errors": 0}
    rows = _rows(out, "_rows", "b", "tiny")
    usual = codec.config.diffusion.steps
    assert [(row["decoding"], row["steps"], row["usual_steps"]) for row in rows] == [
        ("corrected", usual, True), ("privileged", usual, True), ("uncorrected", usual, True), ("corrected", 2, False),
    ]  # fmt: skip
    original = draw(HEIGHT, WIDTH, seed=1)
    sizes = [len(codec.compress_batch([original], settings)[0].data) for settings in CONFIG.settings()]
    assert [row["bytes"] for row in rows] == [sizes[0]] * 3 + [sizes[1]]
    assert not (out / "_windows").exists()  # it is not among those to look at


def test_what_is_no_picture_is_kept_apart_so_that_it_is_tried_again(places: list[Place], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert Measurer(str(out), CONFIG, 3)({"place": places[2], "system": JPEG}) == {"errors": 1}
    (row,) = _rows(out, "_failed", "broken", "jpeg")
    assert row["error"].startswith("not a picture") and row["picture"] == "broken" and row["system"] == "jpeg"
    assert not (out / "_rows").exists()


def test_a_picture_too_large_for_the_memory_of_whoever_allocates_is_a_failure_with_its_reason(
    places: list[Place], codec_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def little_memory(*_: Any) -> None:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED\nwith much advice")

    monkeypatch.setattr(CorrDiffCodec, "compress_batch", little_memory)
    out = tmp_path / "out"
    assert Measurer(str(out), CONFIG, len(places))(
        {"place": places[1], "system": System("tiny", "codec", str(codec_dir))}
    )["errors"]
    assert _rows(out, "_failed", "b", "tiny")[0]["error"] == "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"


def test_a_codec_that_came_to_the_first_one_s_place_ends_the_evaluation(
    places: list[Place], codec_dir: Path, tmp_path: Path
) -> None:
    system = System("tiny", "codec", str(codec_dir), fingerprint="0" * 64)
    with pytest.raises(JobError, match=f"the codec at {codec_dir} is another one now: the job began with 0000"):
        Measurer(str(tmp_path / "out"), CONFIG, 3)({"place": places[1], "system": system})
    assert not (tmp_path / "out").exists()


def test_the_viewer_shows_the_middle_of_what_was_decoded_with_every_pixel(
    places: list[Place], draw: Draw, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    systems = [JPEG, System("webp", "anchor", "webp")]
    measurer = Measurer(str(out), CONFIG, 3)
    for system in systems:
        measurer({"place": places[0], "system": system})
    rows = [row for system in systems for row in _rows(out, "_rows", "a", system.name)]
    table = pd.DataFrame(rows, columns=COLUMNS.names)
    shown = viewer(str(out), places[:2], systems, table)
    (picture,) = shown["pictures"]
    assert (picture["key"], picture["width"], picture["height"]) == ("a", WINDOW, HEIGHT)
    assert shown["systems"] == ["JPEG", "WebP"] and shown["first"] == ["JPEG", "WebP"]
    left = (WIDTH - WINDOW) // 2
    original = draw(HEIGHT, WIDTH, seed=0)
    _assert_shows(picture["original"]["data"], original[:, left : left + WINDOW])
    rate, name = next(shot.split("/") for shot in picture["shots"] if shot.endswith("JPEG"))
    row = min((r for r in rows if r["system"] == "jpeg"), key=lambda r: abs(np.log(r["bpp"] / float(rate))))
    decoded = anchors.decode("jpeg", anchors.encode("jpeg", original, row["quality"]))
    _assert_shows(picture["shots"][f"{rate}/{name}"]["data"], decoded[:, left : left + WINDOW])
    assert picture["shots"][f"{rate}/{name}"]["caption"].startswith(f"{row['bpp']:.3f} bpp, {row['psnr_db']:.1f} dB")


def test_a_system_that_cannot_is_said_in_one_line(places: list[Place], tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = System("mine", "command", "false {in} {out}; false {out} {png}", ("1",))
    assert Measurer(str(out), CONFIG, 3)({"place": places[0], "system": broken}) == {"errors": 1}
    (row,) = _rows(out, "_failed", "a", "mine")
    assert row["error"] == "false failed with exit code 1"


def test_what_a_stage_of_its_own_has_coded_is_measured_as_it_is(
    places: list[Place], codec_dir: Path, tmp_path: Path
) -> None:
    tiny, config = System("tiny", "codec", str(codec_dir)), dataclasses.replace(CONFIG, steps=())
    apart, together = tmp_path / "apart", tmp_path / "together"
    stage = CodecStage(config, "cpu")
    coded, passed = (stage({"place": places[0], "system": system}) for system in (tiny, JPEG))
    assert passed["tried"] is None
    for out, rows in ((apart, [coded, passed]), (together, [{"place": places[0], "system": s} for s in (tiny, JPEG)])):
        measurer = Measurer(str(out), config, 3)
        assert [measurer(row) for row in rows] == [{"errors": 0}] * 2
    for system in ("tiny", "jpeg"):
        one, other = (_rows(out, "_rows", "a", system) for out in (apart, together))
        assert [_without_costs(row) for row in one] == [_without_costs(row) for row in other]


def _without_costs(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if "_s_per_mpx" not in name and "peak_mib" not in name}


def test_the_metrics_of_sets_are_of_the_pictures_that_are_whole_at_each_point_of_each_curve(
    places: list[Place], draw: Draw, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    measurer = Measurer(str(out), CONFIG, 3)
    rows = []
    for place in places:
        measurer({"place": place, "system": JPEG})
        directory = "_failed" if place.key == "broken" else "_rows"
        rows += _rows(out, directory, place.key, "jpeg")
    points = list(set_points(pd.DataFrame(rows, columns=COLUMNS.names)))
    qualities = anchors.ANCHORS["jpeg"].qualities
    assert [point.values["quality"] for point in points] == list(qualities)
    assert all(point.stems == (stem("a", "jpeg"), stem("b", "jpeg")) for point in points)
    found = [measure_set(str(out), point) for point in points]
    originals = [draw(HEIGHT, WIDTH, seed=i) for i in range(2)]
    for row, quality in zip(found, qualities, strict=True):
        decoded = [anchors.decode("jpeg", anchors.encode("jpeg", picture, quality)) for picture in originals]
        expected = _distance(originals, decoded)
        assert row["sliced_wasserstein"] == pytest.approx(expected, abs=2e-3)
        assert row["system"] == "jpeg" and row["fid"] is None and row["kid"] is None


def _distance(originals: list[npt.NDArray[np.uint8]], pictures: list[npt.NDArray[np.uint8]]) -> float | None:
    """Of the two that are whole among three."""
    kept = [
        [sliced_wasserstein.draw_patches(picture, i, 3) for i, picture in enumerate(one)]
        for one in (originals, pictures)
    ]
    return sliced_wasserstein.distance(*kept)


def test_of_other_numbers_of_steps_nothing_is_kept(draw: Draw) -> None:
    original, shown = draw(40, 40), draw(40, 40, seed=1)
    coded = [Coded(shown, 100, 4.0, 1.0, 8, True, "corrected"), Coded(shown, 100, 4.0, 1.0, 2, False, "corrected")]
    data = samples(original, coded, 0, 1, {})
    kept = [bool(read_samples(data, point, "pyramid_patches")) for point in ("original", "0", "1")]
    assert kept == [True, True, False]


def _assert_shows(data: str, pixels: npt.NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)
