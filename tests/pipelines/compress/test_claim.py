from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corrdiff.errors import UsageError
from pipelines.compress.claim import claim
from pipelines.compress.config import CompressConfig
from pipelines.dataset import format as compressed
from pipelines.dataset.format import Plan
from pipelines.files import storage


def test_a_second_compression_of_the_same_pictures_takes_the_first_ones_plan(place: str, tmp_path: Path) -> None:
    for i in range(3):
        storage.write_bytes(str(tmp_path / "in" / f"{i}.png"), b"x")
    images = str(tmp_path / "in")
    first = claim(images, place, "f" * 64, CompressConfig(unit=2))
    assert (first.units, first.pictures) == (2, 3)
    storage.write_bytes(str(tmp_path / "in" / "new.png"), b"x")
    assert claim(images, place, "f" * 64, CompressConfig(unit=2, workers=3)) == first


def test_another_compression_is_not_mixed_with_the_one_that_is_there(place: str, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "in" / "a.png"), b"x")
    images = str(tmp_path / "in")
    claim(images, place, "f" * 64, CompressConfig())
    for fingerprint, config, change in (
        ("e" * 64, CompressConfig(), "codec: "), ("f" * 64, CompressConfig(quality=5), "quality: 4 there, 5 now"),
        ("f" * 64, CompressConfig(verify="pixels"), "verify: 'latents' there, 'pixels' now"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"holds another compression .*{change}"):
            claim(images, place, fingerprint, config)


def test_of_two_jobs_that_begin_at_once_one_plan_is_left(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(str(tmp_path / "in" / "a.png"), b"x")
    images = str(tmp_path / "in")
    original = compressed.claim_plan
    plans: list[Plan] = []

    def slow(uri: str, plan: Plan, absent: dict[str, Any]) -> Plan:
        if not plans:
            plans.append(plan)
            plans.append(claim(images, uri, "f" * 64, CompressConfig()))
        return original(uri, plan, absent)

    monkeypatch.setattr(compressed, "claim_plan", slow)
    plan = claim(images, place, "f" * 64, CompressConfig())
    assert plan == plans[1] != plans[0]
    assert [storage.join(compressed.PLANS, n) for n in storage.list_names(storage.join(place, "_plan"))] == [
        plan.directory
    ]


def test_nothing_to_compress_is_an_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match=r"no pictures at .*--column"):
        claim(str(tmp_path / "in"), place, "f" * 64, CompressConfig())
    assert compressed.read_plan(place) is None
