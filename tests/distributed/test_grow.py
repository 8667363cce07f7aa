"""A compression that grows and tries again what failed, through real Ray and on S3, and is trained on."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from PIL import Image

from pipelines.cli import main
from pipelines.dataset.format import read_plan
from pipelines.dataset.index import all_keys
from pipelines.dataset.summary import read_summary
from pipelines.files import storage
from pipelines.train.config import TrainConfig
from pipelines.train.crops import open_crops, read_run
from tests.support.dataset import as_shards
from tests.support.drawn import make_picture
from tests.support.results import read_files, read_table, recorded


def _picture(place: str, seed: int) -> None:
    """A PNG at a URI."""
    buffer = io.BytesIO()
    Image.fromarray(make_picture(64, 80, seed=seed)).save(buffer, "PNG")
    storage.write_bytes(place, buffer.getvalue())


def _parts(uri: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(f"{uri}/{name}") for name in storage.list_names(uri) if name.startswith("part-")}


def test_a_dataset_grows_and_tries_again_and_goes_back_to_pictures(
    s3: str, common: list[str], codec_dir: Path, tmp_path: Path, tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"{s3}/growing"
    for name, seed in (("a", 1), ("b", 2)):
        _picture(f"{root}/in/{name}.png", seed)
    storage.write_bytes(f"{root}/in/c.png", b"broken")
    command = ["compress", f"{root}/in", f"{root}/out", *common]
    assert main(command) == 0
    before = _parts(f"{root}/out")
    back = ["decompress", f"{root}/out", str(tmp_path / "back"), "--codec", str(codec_dir)]
    assert main(back) == 0
    assert {p.name for p in (tmp_path / "back").glob("*.png")} == {"a.png", "b.png"}

    _picture(f"{root}/in/b.bmp.png", 3)
    _picture(f"{root}/in/a.png", 4)
    _picture(f"{root}/in/c.png", 5)
    capsys.readouterr()
    assert main([*command, "--extend", "--retry-failed"]) == 0
    printed = capsys.readouterr().out.replace("\n", " ")
    assert "1 pictures" in printed
    assert "changed since they were planned" in printed
    assert "tried again: 1 that failed" in printed
    summary, plan = read_summary(f"{root}/out"), read_plan(f"{root}/out")
    assert summary is not None and plan is not None
    assert (summary.pictures, summary.failures, summary.units, len(plan.stages)) == (4, 0, 3, 3)
    assert list(all_keys(f"{root}/out")) == ["a", "b", "b=2Ebmp=2Epng", "c"]
    assert before.items() <= _parts(f"{root}/out").items()
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out

    picture = (tmp_path / "back" / "a.png").stat().st_mtime_ns
    assert main(back) == 0
    assert {p.name for p in (tmp_path / "back").glob("*.png")} == {"a.png", "b.png", "b=2Ebmp=2Epng.png", "c.png"}
    assert (tmp_path / "back" / "a.png").stat().st_mtime_ns == picture


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_done_in_whatever_order_each_picture_counts_once(
    common: list[str], tmp_path: Path, tracking: str, seed: int
) -> None:
    rng, images, out = random.Random(seed), tmp_path / "in", str(tmp_path / "out")
    command = ["compress", str(images), out, *common]
    good: set[str] = set()

    def write(number: int) -> None:
        if rng.random() < 0.3:
            storage.write_bytes(str(images / f"p{number}.png"), b"broken")
        else:
            _picture(str(images / f"p{number}.png"), number)

    for number in range(3):
        write(number)
    _picture(str(images / "first.png"), 99)
    assert main(command) == 0
    for number in range(3, 7):
        write(number)
        write(rng.randrange(number))
        before = _parts(out)
        assert main([*command, *rng.choice([["--extend"], ["--retry-failed"], ["--extend", "--retry-failed"]])]) == 0
        assert before.items() <= _parts(out).items()
    assert main([*command, "--extend"]) == 0
    for place in images.iterdir():
        if place.read_bytes() != b"broken":
            good.add(place.stem)
    for place in images.iterdir():
        if place.stem not in good:
            _picture(str(place), 7)
    assert main([*command, "--retry-failed"]) == 0
    summary = read_summary(out)
    assert summary is not None
    assert (summary.pictures, summary.failures) == (8, 0)
    assert sorted(read_files(out)) == list(all_keys(out)) == sorted([*(f"p{n}" for n in range(7)), "first"])
    rows = read_table(out)
    assert set(rows[rows.status == "ok"].key) == set(all_keys(out))


@pytest.mark.slow
def test_a_training_on_a_compressed_dataset_has_the_losses_of_one_on_the_same_squares(
    common: list[str], photographs: Path, codec_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, losses = str(tmp_path / "compressed"), list[dict[int, float]]()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'compression.db'}")
    assert main(["compress", str(photographs), out, *common, "--unit", "2"]) == 0
    config = TrainConfig(out, str(codec_dir), storage=str(tmp_path / "runs"), name="a", crop=64)
    crops = open_crops(config)
    squares = [
        [run.pixels(i) for i in range(shard.count)]
        for shard in crops.manifest.shards
        for run in [read_run(out, crops.codec, shard, crops.manifest.crop, 0, shard.count)]
    ]
    assert sum(map(len, squares)) == 6 * 4
    shards = as_shards(crops, squares, tmp_path / "shards").uri
    for name, source in (("a", ["--shards", out, "--shards-codec", str(codec_dir)]), ("b", ["--shards", shards])):
        store = f"sqlite:///{tmp_path / name}.db"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
        command = [
            "train", "phase1", *source, "--storage", config.storage, "--name", name, "--preset", "tiny", "--crop", "64",
            "--crops-total", "40", "--batch", "4", "--log-every", "1",
        ]  # fmt: skip
        assert main(command) == 0
        losses.append(recorded(store))
    assert losses[0] == losses[1]
    assert len(losses[0]) == 10
