"""Cutting shards and reading them back, through Ray Data."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from corrdiff.errors import JobError
from pipelines.cli import main
from pipelines.runtime.ray_private import STEP_S
from pipelines.shards.format import read_manifest
from pipelines.train import epoch_order, ingest
from pipelines.train.crops import Crops
from pipelines.train.epoch_order import Cursor
from tests.support.drawn import make_picture


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
    assert main(["shard", str(photographs), again, "--crop", "64", "--pictures-per-shard", "2"]) == 0
    assert read_manifest(again) == read_manifest(shards)
    assert main(["shard", str(photographs), again, "--crop", "128"]) == 2
    assert "other pictures or settings" in capsys.readouterr().err


def test_an_interrupted_cut_does_only_what_is_missing(shards: str, photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["shard", str(photographs), str(out), "--crop", "64", "--pictures-per-shard", "2"]
    assert main(command) == 0
    (out / "manifest.json").unlink()
    (out / "_groups" / "train-00001.json").unlink()
    (out / "shard-00001.tar").unlink()
    untouched = (out / "shard-00000.tar").stat().st_mtime_ns
    assert main(command) == 0
    assert read_manifest(str(out)) == read_manifest(shards)
    assert (out / "shard-00000.tar").stat().st_mtime_ns == untouched


def test_two_workers_stream_every_crop_of_two_epochs_exactly_twice(shards: str) -> None:
    manifest = read_manifest(shards)
    steps = 2 * epoch_order.steps_per_epoch(manifest, 8)
    seen: Counter[str] = Counter()
    for rank in range(2):
        batches = list(ingest.CropReader(Crops(shards, manifest), 0, 8, rank, 2).batches(Cursor(0, 0), steps))
        assert len(batches) == steps
        assert batches[-1].next == Cursor(2, 0)
        for batch in batches:
            assert batch.pixels_BHWC.shape == (4, 64, 64, 3)
            assert all((key != "") == (weight == 1) for key, weight in zip(batch.keys, batch.weight_B, strict=True))
            seen.update(key for key in batch.keys if key)
    assert len(seen) == manifest.count
    assert set(seen.values()) == {2}


def test_rays_scheduler_rests_between_its_steps_and_leaves_the_core_to_training(
    shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[float] = []
    original = StreamingExecutor._scheduling_loop_step

    def seen(executor: StreamingExecutor, topology: object) -> object:
        begun.append(time.monotonic())
        return original(executor, topology)

    monkeypatch.setattr(StreamingExecutor, "_scheduling_loop_step", seen)
    assert len(list(ingest.CropReader(Crops(shards, read_manifest(shards)), 0, 8).batches(Cursor(0, 0), 3))) == 3
    assert len(begun) > 1
    assert min(np.diff(begun)) >= STEP_S


def test_a_stream_from_the_middle_gives_what_the_whole_stream_gives_there(shards: str) -> None:
    reader = ingest.CropReader(Crops(shards, read_manifest(shards)), seed=5, batch=8)
    whole = list(reader.batches(Cursor(0, 0), 9))
    tail = list(reader.batches(whole[3].next, 5))
    for a, b in zip(whole[4:], tail, strict=True):
        assert (a.epoch, a.keys, a.next, a.real_rows) == (b.epoch, b.keys, b.next, b.real_rows)
        np.testing.assert_array_equal(a.pixels_BHWC, b.pixels_BHWC)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda p: p.write_bytes(p.read_bytes()[: -(11 << 10)]),
            r"shard-00000\.tar is truncated: it ends at byte [\d,]+",
        ),
        (lambda p: p.write_bytes(flipped(p.read_bytes())), r"crop 00000-\d{6}\.png at byte [\d,]+ is not what was cut"),
        (lambda p: p.unlink(), r"shard-00000\.tar is missing; copy it again, or cut it again"),
        (lambda p: p.with_suffix(".index").unlink(), "its index is missing"),
        (lambda p: p.with_suffix(".index").write_bytes(b"x"), "its index is not the manifest's"),
    ],
    ids=["truncated", "changed", "missing", "no index", "other index"],
)
def test_a_damaged_shard_is_named_with_the_crop_and_the_byte_and_cut_again_by_its_name(
    damage: object, said: str, ray_cluster: None, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(damage)
    out = tmp_path / "out"
    command = ["shard", str(photographs), str(out), "--crop", "64"]
    assert main(command) == 0
    before = (out / "shard-00000.tar").read_bytes()
    assert main(["shard", "verify", str(out)]) == 0
    damage(out / "shard-00000.tar")
    manifest = read_manifest(str(out))
    with pytest.raises(JobError, match=said) as caught:
        list(ingest.CropReader(Crops(str(out), manifest), 0, 8).batches(Cursor(0, 0), 3))
    assert len(str(caught.value).splitlines()) == 1
    assert f"{out}/shard-00000.tar" in str(caught.value)
    assert main(["shard", "verify", str(out)]) == 1
    assert "1 of 1 shards are wrong" in capsys.readouterr().err
    assert main([*command, "--only", "shard-00000.tar"]) == 0
    assert (out / "shard-00000.tar").read_bytes() == before
    assert read_manifest(str(out)) == manifest
    assert main(["shard", "verify", str(out)]) == 0


def flipped(data: bytes) -> bytes:
    """A bit in the middle, which is inside a PNG."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_held_out_pictures_are_in_no_training_shard(
    ray_cluster: None, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    split = ["--pictures-per-shard", "2", "--val-fraction", "0.3"]
    command = ["shard", str(photographs), str(out), "--crop", "64", *split]
    assert main(command) == 0
    sources: dict[str, set[str]] = {}
    for split, directory in (("train", out), ("val", out / "val")):
        for shard in read_manifest(str(directory)).shards:
            samples = wds.WebDataset(f"{directory}/{shard.name}", shardshuffle=False)
            sources.setdefault(split, set()).update(json.loads(sample["json"])["source"] for sample in samples)
    assert len(sources["val"]) == 2  # 0.3 of six pictures, rounded up
    assert len(sources["train"]) == 4
    assert not sources["train"] & sources["val"]
    assert main([*command, "--only", "val/shard-00007.tar"]) == 2
    assert "these pictures make no such shard" in capsys.readouterr().err


def test_flat_crops_are_left_out_and_counted(ray_cluster: None, tmp_path: Path) -> None:
    pixels = make_picture(64, 128, 0)
    pixels[:, 64:] = 255
    (tmp_path / "pictures").mkdir()
    Image.fromarray(pixels).save(tmp_path / "pictures" / "half.png")
    assert main(["shard", str(tmp_path / "pictures"), str(tmp_path / "out"), "--crop", "64"]) == 0
    manifest = read_manifest(str(tmp_path / "out"))
    assert (manifest.count, manifest.flat) == (1, 1)


def test_pictures_of_one_name_in_many_folders_all_have_keys_of_their_own(ray_cluster: None, tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        Image.fromarray(make_picture(64, 64, ord(folder))).save(tmp_path / "pictures" / folder / "1.png")
    assert main(["shard", str(tmp_path / "pictures"), str(tmp_path / "out"), "--crop", "64"]) == 0
    (shard,) = read_manifest(str(tmp_path / "out")).shards
    samples = list(wds.WebDataset(f"{tmp_path}/out/{shard.name}", shardshuffle=False))
    assert [s["__key__"] for s in samples] == [shard.key(i) for i in range(3)]
