from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from corrdiff.errors import UsageError
from pipelines.compress.config import CompressConfig


@pytest.mark.parametrize(
    ("verify", "share"),
    [
        ("latents", 0.0),
        ("pixels", 1.0),
        ("pixels:1", 1.0),
        ("pixels:0", 0.0),
        ("pixels:0.05", 0.05),
        ("pixels:.5", 0.5),
    ],
)
def test_the_share_of_pictures_that_are_decoded_in_full_is_the_one_asked_for(verify: str, share: float) -> None:
    config = CompressConfig(verify=verify)
    chosen = sum(config.verifies_pixels(f"k/{i}") for i in range(4000))
    assert abs(chosen / 4000 - share) < (0.03 if 0 < share < 1 else 1e-9)


def test_which_pictures_are_decoded_in_full_is_the_same_everywhere_and_grows_with_the_share() -> None:
    few, again, many = (CompressConfig(verify=f"pixels:{share}") for share in (0.1, 0.1, 0.4))
    keys = [f"k/{i}" for i in range(500)]
    chosen = {k for k in keys if few.verifies_pixels(k)}
    assert chosen == {k for k in keys if again.verifies_pixels(k)}
    assert chosen < {k for k in keys if many.verifies_pixels(k)}
    code = (
        "from pipelines.compress.config import CompressConfig as C; c = C(verify='pixels:0.1');"
        "print(*[k for k in range(500) if c.verifies_pixels(f'k/{k}')])"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert {f"k/{k}" for k in elsewhere.split()} == chosen


@pytest.mark.parametrize(
    "verify", ["", "pixel", "pixels:", "pixels:2", "pixels:1.5", "pixels:-0.1", "pixels:nan", "Latents"]
)
def test_a_verification_that_is_not_known_is_refused(verify: str) -> None:
    with pytest.raises(UsageError, match="--verify must be latents, pixels or pixels:SHARE"):
        CompressConfig(verify=verify)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CompressConfig(quality=8), "quality must be from 0 to 7 in steps of 1/16, not 8"),
        (lambda: CompressConfig(fidelity=1.5), "fidelity must be from 0 to 1, not 1.5"),
        (lambda: CompressConfig(steps=65), "steps must be from 0 to 64, not 65"),
        (lambda: CompressConfig(unit=0), "--unit must be at least 1, not 0"),
        (lambda: CompressConfig(batch=0), "--batch must be at least 1, not 0"),
        (lambda: CompressConfig(max_pixels=0), "--max-pixels must be at least 1, not 0"),
        (lambda: CompressConfig(workers=0), "--workers must be at least 1, not 0"),
        (lambda: CompressConfig(max_failures=-1), "--max-failures must not be negative, not -1"),
    ],
)
def test_what_a_dataset_cannot_be_compressed_with_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()


@pytest.mark.parametrize(
    "change",
    [{"workers": 3}, {"device": "cpu"}, {"max_failures": 0}, {"lpips_weights": "a.pth"}, {"max_pixels": 10}],
)
def test_what_changes_no_file_may_change_when_a_compression_goes_on(change: dict[str, Any]) -> None:
    assert CompressConfig(**change).identity() == CompressConfig().identity()


@pytest.mark.parametrize(
    "change",
    [
        {"quality": 5}, {"fidelity": 0.25}, {"steps": 3}, {"unit": 3}, {"batch": 3}, {"precision": "fp32"},
        {"column": "image"}, {"verify": "pixels"}, {"columns": ("caption",)}, {"columns": ("none",)},
        {"picture": "jpg"},
    ],
)  # fmt: skip
def test_what_changes_files_makes_another_compression(change: dict[str, Any]) -> None:
    identity = CompressConfig(**change).identity()
    assert identity != CompressConfig().identity()
    assert json.loads(json.dumps(identity)) == identity


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 4, "target_bpp": 0.2}, "--quality, --target-bpp and --target-psnr: give one of them"),
        ({"target_bpp": 0.2, "target_psnr": 30.0}, "give one of them"),
        ({"target_bpp": 0.0}, "--target-bpp must be positive, not 0.0"),
        ({"target_psnr": float("nan")}, "--target-psnr must be positive, not nan"),
    ],
)
def test_targets_that_make_no_sense_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CompressConfig(**options)  # type: ignore[arg-type]


def test_a_quality_that_is_given_and_the_default_one_are_the_same_compression() -> None:
    assert CompressConfig().identity() == CompressConfig(quality=4).identity()
    assert CompressConfig(target_bpp=0.5).identity() != CompressConfig(target_bpp=0.6).identity()
    assert CompressConfig(target_bpp=0.5).identity()["quality"] is None


def test_the_picture_of_a_table_is_a_column_and_no_ending() -> None:
    with pytest.raises(UsageError, match="--picture is of tars and folders; of tables --column says"):
        CompressConfig(column="image", picture="jpg")
    assert CompressConfig(picture=".JPG").travels() == (("all",), "jpg")
