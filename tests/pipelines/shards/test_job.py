"""Whose a directory of shards is, before anything is cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from corrdiff.errors import UsageError
from corrdiff.images import save_png
from pipelines.display.progress import Progress
from pipelines.shards import job
from pipelines.shards.config import ShardConfig
from pipelines.shards.job import cut_shards


@pytest.fixture
def pictures(draw: Callable[..., npt.NDArray[np.uint8]], tmp_path: Path) -> str:
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(save_png(draw(64, 64, seed=i)))
    return str(tmp_path / "pictures")


def test_a_second_job_with_other_settings_is_refused_though_the_first_has_cut_nothing_yet(
    pictures: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    first = next(cut_shards(pictures, out, ShardConfig(crop=64)))  # it has begun, and cut nothing
    assert first == Progress(0, 3, "pictures", "0 crops")
    with pytest.raises(UsageError) as caught:
        next(cut_shards(pictures, out, ShardConfig(crop=32)))
    assert str(caught.value) == (
        f"{out} holds shards of other pictures or settings (crop: 64 there, 32 now); choose another directory"
    )
    assert next(cut_shards(pictures, out, ShardConfig(crop=64))) == first


def test_other_pictures_are_refused(pictures: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    next(cut_shards(pictures, out, ShardConfig(crop=64)))
    with pytest.raises(UsageError, match=r"holds shards of other pictures or settings \(pictures: "):
        next(cut_shards(f"{pictures}/0.png", out, ShardConfig(crop=64)))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"group": "train-00000"', "is damaged: not JSON"),
        ('{"group": "train-00000"}', "is damaged, or of another version (plan: Field required)"),
        (
            json.dumps({
                "group": "train-00000", "plan": "another", "skipped": [], "flat": 0,
                "shard": {"name": "s", "count": 1, "bytes": 1, "sha256": "a", "index_sha256": "b"},
            }),
            "holds unfinished shards of other pictures or settings; choose another directory",
        ),
    ],
    ids=["cut short", "a field is missing", "of another plan"],
)  # fmt: skip
def test_a_record_that_is_not_of_this_job_is_one_sentence(
    record: str, said: str, pictures: str, tmp_path: Path
) -> None:
    groups = tmp_path / "out" / job.GROUPS
    groups.mkdir(parents=True)
    (groups / "train-00000.json").write_text(record)
    with pytest.raises(UsageError) as caught:
        next(cut_shards(pictures, str(tmp_path / "out"), ShardConfig(crop=64)))
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out" / job.PLAN).exists()  # nothing was claimed


def test_what_a_killed_job_was_writing_counts_for_nothing(pictures: str, tmp_path: Path) -> None:
    groups = tmp_path / "out" / job.GROUPS
    groups.mkdir(parents=True)
    for name in ("train-00000.json.17.23.tmp", ".corrdiff-0123456789abcdef0123456789abcdef.tmp", "notes.json"):
        (groups / name).write_text('{"gro')
    assert next(cut_shards(pictures, str(tmp_path / "out"), ShardConfig(crop=64))).done == 0


@pytest.mark.parametrize("name", ["shard-00000.tar", "shard-00000.index", "manifest.json", "val/shard-00000.tar"])
def test_what_was_there_before_is_left_alone_and_named(pictures: str, tmp_path: Path, name: str) -> None:
    foreign = tmp_path / "out" / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_bytes(b"{}")
    with pytest.raises(UsageError, match=rf"{name} exists, and is of no job|manifest\.json is of no format"):
        next(cut_shards(pictures, str(tmp_path / "out"), ShardConfig(crop=64, val_fraction=0.4)))
    assert foreign.read_bytes() == b"{}"
    assert not (tmp_path / "out" / job.PLAN).exists()


def test_files_that_are_called_otherwise_may_be_there(pictures: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("shard-00009.tar", "shard-0.tar", "a.png", "shard-00000.tar.bak"):
        (tmp_path / "out" / name).write_bytes(b"x")
    next(cut_shards(pictures, str(tmp_path / "out"), ShardConfig(crop=64)))
    (tmp_path / "out" / "shard-00000.tar").write_bytes(b"cut before the job was killed")
    next(cut_shards(pictures, str(tmp_path / "out"), ShardConfig(crop=64)))
