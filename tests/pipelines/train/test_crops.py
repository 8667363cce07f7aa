"""Training from a compressed dataset as from shards: the squares of its decoded pictures, in the same order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from corrdiff import load_codec
from corrdiff.errors import JobError, UsageError
from corrdiff.picture import Picture
from pipelines.dataset.units import read_record
from pipelines.files import storage
from pipelines.shards.cut import crop_positions
from pipelines.shards.format import Manifest, Shard, write_manifest
from pipelines.train import ingest, validation
from pipelines.train.config import TrainConfig
from pipelines.train.crops import Crops, open_crops, read_run
from pipelines.train.epoch_order import Cursor, parts, steps_per_epoch
from pipelines.train.first_crops import first_crops
from tests.support.dataset import SIZES, as_shards, encoded, write_dataset

SIDE = 96


@pytest.fixture(scope="module")
def dataset(sliced_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(str(tmp_path_factory.mktemp("compressed") / "out"), str(sliced_dir))


@pytest.fixture
def config(dataset: str, sliced_dir: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        shards=dataset, shards_codec=str(sliced_dir), storage=str(tmp_path / "runs"), name="a", crop=64, batch=4
    )


def _squares(codec_dir: Path) -> dict[int, list[Picture]]:
    """Unit -> the squares of its decoded pictures, one after the other."""
    codec, found = load_codec(str(codec_dir)), dict[int, list[Picture]]()
    for unit, numbers in ((0, (0, 1, 2)), (2, (3, 4, 5, 6))):
        for number in numbers:
            picture = codec.decompress(encoded(load_codec(str(codec_dir), precision="fp32"), number), "privileged")
            rows, columns = (crop_positions(size, SIDE, SIDE) for size in SIZES[number])
            places = [(y, x) for y in rows for x in columns]
            found.setdefault(unit, []).extend(picture[y : y + SIDE, x : x + SIDE] for y, x in places)
    return found


def test_what_is_trained_on_is_what_the_pictures_decode_to_in_the_order_of_shards(
    config: TrainConfig, sliced_dir: Path, tmp_path: Path
) -> None:
    crops = open_crops(config)
    squares = _squares(sliced_dir)
    assert [shard.count for shard in crops.manifest.shards] == [len(squares[0]), len(squares[2])] == [4, 20]
    assert crops.manifest.crop == SIDE
    shards = as_shards(crops, [squares[0], squares[2]], tmp_path / "shards")
    for rank in range(2):
        for part in parts(crops.manifest, 5, Cursor(0, 0), 2 * steps_per_epoch(crops.manifest, 4), 4):
            blocks = [list(ingest.CropReader(each, 5, 4, rank, 2).share_of(part)()) for each in (crops, shards)]
            for ours, theirs in zip(*blocks, strict=True):
                assert ours.drop(["stored"]).equals(theirs.drop(["stored"]))
    assert np.array_equal(first_crops(crops, 8), first_crops(shards, 8))
    ours, theirs = validation.read_held_out(crops), validation.read_held_out(shards)
    assert ours.name == theirs.name == "train_crops"
    assert all(np.array_equal(a, b) for a, b in zip(ours.crops, theirs.crops, strict=True))


def test_a_directory_of_shards_is_none_though_it_has_a_plan(config: TrainConfig, tmp_path: Path) -> None:
    manifest = Manifest(64, (Shard("shard-00000.tar", 3, 100, "", ""),))
    write_manifest(str(tmp_path), "a hash", manifest)
    storage.write_json(str(tmp_path / "plan.json"), {"identity": {"crop": 64}})
    shards = dataclasses.replace(config, shards=str(tmp_path), shards_codec=None)
    assert open_crops(shards) == Crops(str(tmp_path), manifest)


def test_a_run_that_goes_on_keeps_the_squares_that_it_began_with(config: TrainConfig, dataset: str) -> None:
    before = open_crops(config)
    written = Path(config.storage) / "a" / "crops-96" / "manifest.json"
    data = written.read_bytes()
    assert open_crops(config) == before
    assert written.read_bytes() == data


def test_what_cannot_be_trained_on_is_said(config: TrainConfig, dataset: str, tmp_path: Path) -> None:
    for change, message in (
        ({"shards_codec": None}, "is a compressed dataset: give --shards-codec"),
        ({"shards_codec": "builtin:tiny"}, "give the codec that wrote it"),
        ({"crop": 512}, "no picture of .* is as large as 768 pixels square"),
        ({"shards": str(tmp_path)}, "no shards at"),
    ):
        with pytest.raises(UsageError, match=message):
            open_crops(dataclasses.replace(config, **change))


def test_a_part_that_has_changed_is_not_trained_on(config: TrainConfig, sliced_dir: Path, tmp_path: Path) -> None:
    out = write_dataset(str(tmp_path / "other"), str(sliced_dir))
    crops = open_crops(dataclasses.replace(config, shards=out))
    shard = crops.manifest.shards[0]
    with pytest.raises(JobError, match="has fewer squares of 96 pixels than were counted: 5"):
        read_run(out, crops.codec, dataclasses.replace(shard, count=5), SIDE, 0, 5)
    part = Path(out) / read_record(out, 0).tar.name
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(JobError, match="is damaged"):
        read_run(out, crops.codec, shard, SIDE, 0, 1)
    part.unlink()
    with pytest.raises(JobError, match="is missing"):
        read_run(out, crops.codec, shard, SIDE, 0, 1)
