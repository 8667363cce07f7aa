"""Cutting shards and reading them back, through Ray Data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from corrdiff.errors import JobError
from pipelines import ingest
from pipelines.cli import main
from pipelines.ingest import Cursor
from pipelines.shards import read_manifest

from .conftest import make_picture


def test_webdataset_reads_a_shard_and_every_crop_is_the_picture_at_its_place(shards: str, photographs: Path) -> None:
    manifest = read_manifest(shards)
    for shard in manifest.shards:
        samples = list(wds.WebDataset(f"{shards}/{shard.name}", shardshuffle=False).decode("rgb8"))
        assert len(samples) == shard.count
        for sample in samples:
            place = sample["json"]
            original = np.asarray(Image.open(place["source"]))
            expected = original[place["y"] : place["y"] + 64, place["x"] : place["x"] + 64]
            np.testing.assert_array_equal(sample["png"], expected)


def test_crops_cover_the_whole_picture(shards: str) -> None:
    covered = np.zeros((160, 192), dtype=bool)
    for shard in read_manifest(shards).shards:
        for sample in wds.WebDataset(f"{shards}/{shard.name}", shardshuffle=False):
            place = json.loads(sample["json"])
            if place["source"].endswith("picture_3.png"):
                covered[place["y"] : place["y"] + 64, place["x"] : place["x"] + 64] = True
    assert covered.all()


def test_broken_and_small_pictures_are_skipped_with_their_reason(ray_cluster: None, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(make_picture(64, 64, 0)).save(pictures / "good.png")
    Image.fromarray(make_picture(40, 90, 0)).save(pictures / "small.png")
    (pictures / "empty.jpg").write_bytes(b"")
    assert main(["shard", str(pictures), str(tmp_path / "out"), "--crop", "64"]) == 0
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest.count == 1
    reasons = {Path(uri).name: reason for uri, reason in manifest.skipped}
    assert reasons == {"small.png": "90x40 is smaller than the crop", "empty.jpg": "the file is empty"}


def test_the_same_pictures_give_the_same_shards_and_other_settings_are_refused(
    shards: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = str(tmp_path / "again")
    assert main(["shard", str(photographs), again, "--crop", "64", "--images-per-shard", "2"]) == 0
    assert read_manifest(again) == read_manifest(shards)
    assert main(["shard", str(photographs), again, "--crop", "128"]) == 2
    assert "other pictures or settings" in capsys.readouterr().err


def test_an_interrupted_cut_does_only_what_is_missing(shards: str, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["shard", str(photographs), str(out), "--crop", "64", "--images-per-shard", "2"]
    assert main(command) == 0
    (out / "manifest.json").unlink()
    (out / "_groups" / "00001.json").unlink()
    (out / "shard-00001.tar").unlink()
    untouched = (out / "shard-00000.tar").stat().st_mtime_ns
    assert main(command) == 0
    assert read_manifest(str(out)) == read_manifest(shards)
    assert (out / "shard-00000.tar").stat().st_mtime_ns == untouched


def test_two_workers_stream_every_crop_of_two_epochs_exactly_twice(shards: str) -> None:
    manifest = read_manifest(shards)
    steps = 2 * ingest.steps_per_epoch(manifest, 8)
    seen: Counter[str] = Counter()
    for rank in range(2):
        batches = list(ingest.stream(shards, manifest, 0, Cursor(0, 0), steps, 8, rank, 2))
        assert len(batches) == steps
        assert batches[-1].next == Cursor(2, 0)
        for batch in batches:
            assert batch.pixels_BHWC.shape == (4, 64, 64, 3)
            assert all((key != "") == (weight == 1) for key, weight in zip(batch.keys, batch.weight_B, strict=True))
            seen.update(key for key in batch.keys if key)
    assert len(seen) == manifest.count
    assert set(seen.values()) == {2}


def test_a_stream_from_the_middle_gives_what_the_whole_stream_gives_there(shards: str) -> None:
    manifest = read_manifest(shards)
    whole = list(ingest.stream(shards, manifest, 5, Cursor(0, 0), 9, 8, 0, 1))
    tail = list(ingest.stream(shards, manifest, 5, whole[3].next, 5, 8, 0, 1))
    for a, b in zip(whole[4:], tail, strict=True):
        assert (a.epoch, a.keys, a.next, a.real_rows) == (b.epoch, b.keys, b.next, b.real_rows)
        np.testing.assert_array_equal(a.pixels_BHWC, b.pixels_BHWC)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-512]), "is truncated"),
        (lambda p: p.write_bytes(p.read_bytes()[:-1] + b"x"), "is not the manifest's: its SHA-256 differs"),
        (lambda p: p.unlink(), "is missing"),
    ],
    ids=["truncated", "changed", "missing"],
)
def test_a_damaged_shard_is_named(
    damage: object, said: str, ray_cluster: None, photographs: Path, tmp_path: Path
) -> None:
    assert callable(damage)
    out = tmp_path / "out"
    assert main(["shard", str(photographs), str(out), "--crop", "64"]) == 0
    damage(out / "shard-00000.tar")
    manifest = read_manifest(str(out))
    with pytest.raises(JobError, match=rf"^shard \S+shard-00000\.tar {said}") as caught:
        list(ingest.stream(str(out), manifest, 0, Cursor(0, 0), 3, 8, 0, 1))
    assert len(str(caught.value).splitlines()) == 1
