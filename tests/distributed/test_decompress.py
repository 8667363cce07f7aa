"""The way back: a compressed dataset to pictures and shards, and reading it without unpacking."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from corrdiff import load_codec
from corrdiff.metrics import psnr
from pipelines import CompressedPictures, read_compressed
from pipelines.cli import main
from pipelines.dataset.index import find
from pipelines.dataset.units import read_record
from pipelines.files import storage
from tests.support.results import read_files
from tests.support.servers import S3Server


@pytest.mark.parametrize(("kind", "extension", "least_db"), [
    ("webp", "webp", 50.0), pytest.param("png", "png", 50.0, marks=pytest.mark.slow),
    pytest.param("jpeg", "jpg", 25.0, marks=pytest.mark.slow),
])  # fmt: skip
def test_pictures_come_back_in_the_format_that_was_asked_for(
    dataset: str, codec_dir: Path, tmp_path: Path, kind: str, extension: str, least_db: float
) -> None:
    written, codec = read_files(dataset), load_codec(str(codec_dir))
    assert main(["decompress", dataset, str(tmp_path), "--codec", str(codec_dir), "--format", kind]) == 0
    found = {p.relative_to(tmp_path).with_suffix("").as_posix(): p for p in tmp_path.rglob(f"*.{extension}")}
    assert found.keys() == written.keys()
    for key in list(written)[::5]:
        assert psnr(codec.decompress(written[key]), np.asarray(Image.open(found[key]))) > least_db


def test_pictures_come_back_as_shards(dataset: str, codec_dir: Path, tmp_path: Path) -> None:
    written = read_files(dataset)
    out = tmp_path / "shards"
    assert main(["decompress", dataset, str(out), "--codec", str(codec_dir), "--shards"]) == 0
    samples = list(wds.WebDataset(list(map(str, out.glob("*.tar"))), shardshuffle=False).decode("rgb8"))
    assert Counter(s["__key__"] for s in samples) == Counter(list(written))


@pytest.mark.slow
def test_an_interrupted_way_back_does_what_is_missing_and_another_format_is_refused(
    dataset: str, codec_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["decompress", dataset, str(tmp_path), "--codec", str(codec_dir)]
    assert main(command) == 0
    pictures = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    (tmp_path / "_decompressed" / "00001").unlink()
    assert main(command) == 0
    again = {p for p in tmp_path.rglob("*.png") if p.stat().st_mtime_ns != pictures[p]}
    record = read_record(dataset, 1)
    assert len(again) == record.pictures - record.failures
    capsys.readouterr()
    assert main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*command, "--format", "jpeg"]) == 2
    assert "format: 'png' there, 'jpeg' now" in capsys.readouterr().err


def test_single_pictures_come_back_from_their_bytes_alone(
    dataset: str, s3_storage: S3Server, codec_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parts' other bytes are overwritten: nothing but the pictures' own can have been read."""
    remote = f"{s3_storage.uri}/single"
    keys, written = ["a/p04", "b/p11"], read_files(dataset)
    members = find(dataset, keys)
    for file in Path(dataset).rglob("*"):
        if file.is_file():
            data = bytearray(file.read_bytes())
            if file.suffix == ".tar":
                kept = [(m.offset, m.offset + m.bytes) for m in members if m.part == file.name]
                data = bytearray(len(data))
                for start, end in kept:
                    data[start:end] = file.read_bytes()[start:end]
            storage.write_bytes(f"{remote}/{file.relative_to(dataset)}", bytes(data))
    command = ["decompress", remote, str(tmp_path), "--codec", str(codec_dir), "--keys"]
    assert main([*command, *keys]) == 0
    codec = load_codec(str(codec_dir))
    for key in keys:
        assert psnr(codec.decompress(written[key]), np.asarray(Image.open(tmp_path / f"{key}.png"))) > 50
    assert len(list(tmp_path.rglob("*.png"))) == 2
    assert main([*command, "a/nothing"]) == 2
    assert "no compressed picture 'a/nothing'" in capsys.readouterr().err


def test_a_training_job_reads_the_compressed_dataset_without_unpacking_it(dataset: str, codec_dir: Path) -> None:
    written, codec = read_files(dataset), load_codec(str(codec_dir))
    pictures = CompressedPictures(dataset, str(codec_dir), seed=3)
    first = [key for key, _ in pictures]
    assert Counter(first) == Counter(list(written))
    assert first != sorted(first)
    assert [key for key, _ in pictures] == first
    pictures.set_epoch(1)
    assert [key for key, _ in pictures] != first
    corrected = CompressedPictures(dataset, str(codec_dir), decoding="corrected")
    loader = DataLoader(corrected, batch_size=None, num_workers=2)
    found = dict(iter(loader))
    assert found.keys() == written.keys()
    for key in list(written)[::7]:
        x_CHW = found[key]
        assert (x_CHW.dtype, x_CHW.shape[0]) == (torch.uint8, 3)
        assert psnr(codec.decompress(written[key]), x_CHW.permute(1, 2, 0).numpy()) > 50


def test_ray_data_reads_the_compressed_dataset(dataset: str, codec_dir: Path) -> None:
    written, codec = read_files(dataset), load_codec(str(codec_dir))
    rows = read_compressed(dataset, str(codec_dir)).take_all()
    assert Counter(row["key"] for row in rows) == Counter(list(written))
    for row in rows[::7]:
        assert psnr(codec.decompress(written[row["key"]]), np.asarray(row["image"])) > 50


@pytest.mark.slow
def test_reading_the_compressed_dataset_starts_ray_where_it_is_not_started(dataset: str, codec_dir: Path) -> None:
    imports = "from pipelines import read_compressed"
    program = f"{imports}; print(read_compressed({dataset!r}, {str(codec_dir)!r}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Dataset" in done.stdout
