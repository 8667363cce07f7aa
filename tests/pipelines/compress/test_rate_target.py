from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from torch import Tensor

from corrdiff import rate_control
from corrdiff.codec import CorrDiffCodec, Preview, Settings
from corrdiff.errors import UsageError
from corrdiff.rate_control import Choice, Curve, Point
from pipelines.compress import rate_target as target
from pipelines.compress.chunk import Chunk, Opened
from pipelines.compress.claim import CompressJob
from pipelines.compress.config import CompressConfig
from pipelines.compress.rate import Rate, qualities
from pipelines.compress.rate_target import Sampled
from pipelines.dataset.format import Plan, Stage
from pipelines.files import storage

Picture = npt.NDArray[np.uint8]
Draw = Callable[..., Picture]
NO_OFFSET = [0.0] * 8
RATE = Rate(slope=10.0, start=4, bytes_a_cell=2.0, psnr_offset_db=NO_OFFSET, sampled=1, bpp=0.1, psnr_db=30.0)
AT_BPP = CompressConfig(target_bpp=0.5)


def _sampled(unit: int, place: int, size: int, mse: float = 50.0) -> Sampled:
    """A picture that is the same at every quality."""
    return Sampled(unit, place, 1000, 1, [Preview(size, mse)] * 8)


def test_pictures_take_the_quality_that_all_their_previews_together_would_say(codec: CorrDiffCodec, draw: Draw) -> None:
    images = [draw(70, 90, seed=s) for s in range(3)]
    settings = Settings(steps=1)
    curves, latents = [], codec.latents(images, settings)
    for i, image in enumerate(images):
        previews = [codec.preview([image], [y[i : i + 1] for y in latents], settings, [q])[0] for q in range(8)]
        curves.append(Curve(70 * 90, [Point.of(p.bytes + 2.0, 70 * 90, p.mse) for p in previews]))
    for slope in (1e-6, 0.3, 3.0, 1e6):
        choice = Choice(slope, 4, parts=1)
        expected = [rate_control.chosen_quality(curve.points, choice) for curve in curves]
        assert qualities(codec, images, latents, settings, dataclasses.replace(RATE, slope=slope)) == expected
    assert qualities(codec, images, latents, settings, dataclasses.replace(RATE, slope=1e9)) == [0, 0, 0]


def test_a_codec_with_qualities_between_levels_gives_them_after_no_more_previews(
    sliced: CorrDiffCodec, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, settings = [draw(70, 90, seed=s) for s in range(4)], Settings(steps=0)
    latents, tried = sliced.latents(images, settings), list[float]()
    preview = CorrDiffCodec.preview

    def counted(codec: CorrDiffCodec, of: Any, y: Any, asked: Settings, levels: Sequence[float]) -> list[Preview]:
        tried.extend(levels)
        return preview(codec, of, y, asked, levels)

    monkeypatch.setattr(CorrDiffCodec, "preview", counted)
    found = qualities(sliced, images, latents, settings, dataclasses.replace(RATE, slope=2.0, parts=16))
    assert all(level == int(level) for level in tried)
    whole = len(tried)
    tried.clear()
    levels = qualities(sliced, images, latents, settings, dataclasses.replace(RATE, slope=2.0, parts=1))
    assert len(tried) == whole
    assert all(abs(fine - level) < 1 for fine, level in zip(found, levels, strict=True))
    assert all(quality * 16 == int(quality * 16) for quality in found)


def test_between_levels_files_are_about_as_large_as_interpolation_says(sliced: CorrDiffCodec, draw: Draw) -> None:
    image, settings = draw(192, 256), Settings(steps=0)
    latents = sliced.latents([image], settings)

    def at(quality: float) -> Point:
        (preview,) = sliced.preview([image], latents, settings, [quality])
        return Point.of(preview.bytes, 192 * 256, preview.mse)

    for level in (3, 5):
        expected = rate_control.point_at({level: at(level), level + 1: at(level + 1)}, level + 0.5)
        assert at(level + 0.5).bpp == pytest.approx(expected.bpp, rel=0.02)


def test_a_picture_too_large_for_the_memory_is_not_sampled_and_stops_none_of_the_others(
    codec_dir: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CorrDiffCodec.latents

    def little_memory(self: CorrDiffCodec, images: list[Picture], settings: Settings) -> list[Tensor]:
        if images[0].shape[1] > 8:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
        return original(self, images, settings)

    monkeypatch.setattr(CorrDiffCodec, "latents", little_memory)
    sampler = target.Sampler(str(codec_dir), CompressConfig(steps=1), "cpu", {})
    opened = [Opened(i, str(i), "", draw(8, width)) for i, width in enumerate((9, 8))]
    assert [s.place for s in sampler({"chunk": Chunk(0, opened, 2, {})})["sampled"]] == [1]


def test_the_standard_error_is_that_of_drawing_units_again_and_again() -> None:
    rng = np.random.default_rng(0)
    of_unit = rng.uniform(20, 200, 1000)
    population = [
        [_sampled(unit, place, int(size * rng.uniform(0.8, 1.2))) for place in range(int(rng.integers(1, 9)))]
        for unit, size in enumerate(of_unit)
    ]
    estimates, errors = [], []
    for _ in range(300):
        drawn = [s for unit in rng.choice(1000, 50, replace=False) for s in population[unit]]
        bits = 8 * sum(s.previews[0].bytes for s in drawn)
        estimates.append(bits / sum(s.pixels for s in drawn))
        errors.append(target.relative_error(drawn, RATE, 0.05, AT_BPP))
    assert np.mean(errors) == pytest.approx(np.std(estimates) / np.mean(estimates), rel=0.1)


def test_what_is_known_in_full_has_no_error_and_one_unit_says_nothing_of_the_others() -> None:
    pictures = [_sampled(0, place, 50 + place) for place in range(5)]
    assert target.relative_error(pictures, RATE, 1.0, AT_BPP) == 0
    assert target.relative_error(pictures, RATE, 0.1, AT_BPP) == math.inf


def test_a_target_that_no_quality_reaches_is_refused_with_what_can_be_reached() -> None:
    pictures = [Sampled(u, 0, 1000, 1, [Preview(20 * 2**q, 90.0 / 2**q) for q in range(8)]) for u in range(3)]
    for config, message in (
        (CompressConfig(target_bpp=50.0), r"--target-bpp 50.0 is out of reach.* between 0.176 and 20.5"),
        (CompressConfig(target_psnr=60.0), r"--target-psnr 60.0 is out of reach.* between 28.59 and 49.66"),
    ):
        with pytest.raises(UsageError, match=message):
            target._check_in_reach(pictures, RATE, config)
    target._check_in_reach(pictures, RATE, CompressConfig(target_bpp=20.7))
    target._check_in_reach(pictures, RATE, CompressConfig(target_psnr=35.0))


def test_what_factors_and_diffusion_add_is_part_of_the_aim() -> None:
    pictures = [Sampled(u, 0, 1000, 2, [Preview(20 * 2**q, 90.0 / 2**q) for q in range(8)]) for u in range(40)]
    pictures[0] = pictures[0]._replace(more_bytes=(10, 10, 10), more_db=(-0.5, -1.0, -2.5))
    pictures[1] = pictures[1]._replace(more_bytes=(20, 20, 20), more_db=(-0.5, -2.0, -3.5))
    rate = target.fit(pictures, CompressConfig(target_psnr=34.0), parts=1)
    assert (rate.bytes_a_cell, rate.sampled) == (7.5, 40)
    assert rate.psnr_offset_db == pytest.approx([-0.5, -0.75, -1.0, -1.25, -1.5, -2.0, -2.5, -3.0])
    levels = [10 * math.log10(255**2 / (90.0 / 2**q)) + rate.psnr_offset_db[q] for q in range(8)]
    quality = int(np.argmin(np.abs(np.array(levels) - 34.0)))
    assert rate.psnr_db == pytest.approx(levels[quality])
    assert rate.bpp == pytest.approx(8 * (20 * 2**quality + 15) / 1000)
    assert rate.parts == 1
    fine = target.fit(pictures, CompressConfig(target_psnr=34.0), parts=16)
    assert fine.parts == 16
    assert abs(fine.psnr_db - 34.0) <= (levels[-1] - levels[0]) / (7 * 16)


def test_the_rule_that_is_written_down_counts(tmp_path: Path) -> None:
    job = CompressJob("in", str(tmp_path), "no codec is needed", Plan({}, (Stage("_plan/x", 1, 1),)), AT_BPP)
    uri = str(tmp_path / "rate.json")
    storage.write_json(uri, {"slope": 3.0, "start": 2, "bytes_a_cell": 1.0, "psnr_offset_db": NO_OFFSET, "sampled": 7,
                             "bpp": 0.3, "psnr_db": 31.0})  # fmt: skip
    rate = target.find_rate(job)
    assert rate == Rate(3.0, 2, 1.0, NO_OFFSET, 7, 0.3, 31.0)
    storage.write_json(uri, {"slope": 3.0})
    with pytest.raises(UsageError, match=r"rate.json is damaged"):
        target.find_rate(job)
