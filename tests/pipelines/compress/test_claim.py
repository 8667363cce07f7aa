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
    assert [storage.join(compressed.PLANS, n) for n in storage.list_names(storage.join(place, "_plan"))] == [plan.name]


def test_nothing_to_compress_is_an_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match=r"no pictures at .*--column"):
        claim(str(tmp_path / "in"), place, "f" * 64, CompressConfig())
    assert compressed.read_plan(place) is None


def test_what_was_found_and_not_taken_is_in_the_plan(place: str, tmp_path: Path) -> None:
    for name in ("a.png", "b.heic", "._a.png", "c"):
        storage.write_bytes(str(tmp_path / "in" / name), b"x")
    plan = claim(str(tmp_path / "in"), place, "f" * 64, CompressConfig())
    assert plan.left_out == {".heic": 1, "macOS's own (._NAME, __MACOSX)": 1, "without an extension": 1}
    assert (plan.pictures or 0) + sum(plan.left_out.values()) == 4
    assert compressed.read_plan(place) == plan


@pytest.mark.parametrize("name", [
    "summary.json", "rate.json", "_units/00000.json", "_index/keys.parquet", "part-00000-0123456789ab.tar",
    "part-00000-0123456789ab.parquet", "_writing/x",
])  # fmt: skip
def test_a_directory_that_holds_what_a_compression_would_take_for_its_own_is_left_alone(
    place: str, tmp_path: Path, name: str
) -> None:
    storage.write_bytes(str(tmp_path / "in" / "a.png"), b"x")
    storage.write_bytes(storage.join(place, name), b"somebody's")
    with pytest.raises(UsageError, match=f"holds {name.partition('/')[0]}, and no plan of a compression"):
        claim(str(tmp_path / "in"), place, "f" * 64, CompressConfig())
    assert storage.read_bytes(storage.join(place, name)) == b"somebody's"
    assert storage.list_names(place) == [name.partition("/")[0]]


def test_a_directory_with_files_of_others_is_taken(place: str, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "in" / "a.png"), b"x")
    for name in (
        "part-0000.tar",
        "part-notes/thesis.txt",
        "summary.txt",
        "a.png",
        "_plan/left-by-a-kill/00000.parquet",
    ):
        storage.write_bytes(storage.join(place, name), b"somebody's")
    assert claim(str(tmp_path / "in"), place, "f" * 64, CompressConfig()).units == 1


def test_a_plan_of_an_older_version_is_gone_on_with(place: str, tmp_path: Path) -> None:
    """One that names neither files nor what was left out."""
    storage.write_bytes(str(tmp_path / "in" / "a.png"), b"x")
    plan = claim(str(tmp_path / "in"), place, "f" * 64, CompressConfig())
    value = storage.read_json(storage.join(place, "plan.json"))
    older = {name: value[name] for name in value if name not in ("files", "left_out", "again")}
    storage.write_bytes(storage.join(place, "plan.json"), storage.to_json(older))
    again = claim(str(tmp_path / "in"), place, "f" * 64, CompressConfig())
    assert (again.name, again.stages[0].files, again.left_out) == (plan.name, (), {})
