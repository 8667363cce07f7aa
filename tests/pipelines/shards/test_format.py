"""A directory of shards says what it holds, and what is wrong with it in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corrdiff.errors import UsageError
from pipelines.shards.format import FORMAT, Manifest, Shard, has_validation, read_manifest, read_planned, write_manifest

MANIFEST = Manifest(64, (Shard("shard-00000.tar", 3, 4096, "ab", "cd"),), (("/a.png", "it is empty"),), 2)


def test_a_manifest_comes_back_with_the_plan_it_was_cut_by(tmp_path: Path) -> None:
    write_manifest(str(tmp_path), "a hash", MANIFEST)
    assert read_planned(str(tmp_path)) == ("a hash", MANIFEST)
    assert read_manifest(str(tmp_path)) == MANIFEST
    assert not has_validation(str(tmp_path))
    write_manifest(str(tmp_path / "val"), "a hash", MANIFEST)
    assert has_validation(str(tmp_path))


def _shard(**changes: Any) -> dict[str, Any]:
    return {"name": "shard-00000.tar", "count": 3, "bytes": 1, "sha256": "a", "index_sha256": "b", **changes}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"format": "corrdiff-shards-9"}, "is of no format that this program reads"),
        ([], "is of no format that this program reads"),
        ({"format": FORMAT, "crop": 64}, "is damaged, or of another version (shards: Field required)"),
        ({"format": FORMAT, "crop": "64", "shards": []}, "is damaged, or of another version (crop: "),
        ({"format": FORMAT, "crop": 64, "shards": [_shard(count=None)]}, "(shards.0.count: "),
        ({"format": FORMAT, "crop": 64, "shards": [_shard(color="red")]}, "a field 'color' that is not known"),
    ],
    ids=["another format", "no object", "a field is missing", "a type", "a shard", "an unknown field"],
)
def test_a_manifest_that_cannot_be_read_is_one_sentence(value: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    with pytest.raises(UsageError) as caught:
        read_manifest(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}/manifest.json ")
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_directory_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no manifest\.json; cut some with 'corrdiff shard IMAGES"):
        read_manifest(str(tmp_path))
