"""Compressing datasets and what is left behind: inputs of every kind, failures, faults, and the way back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from corrdiff import load_codec
from corrdiff.codec_directory import save_codec
from corrdiff.config import tiny
from corrdiff.metrics import psnr
from corrdiff.networks.model import CorrDiffModel
from pipelines import CompressedPictures, read_compressed
from pipelines.cli import main
from pipelines.dataset import format as compressed
from pipelines.files import storage
from tests.support.drawn import make_picture
from tests.support.results import read_files, read_table
from tests.support.servers import S3Server

SIZES = [(40, 64), (64, 40), (17, 90), (64, 64)]
COUNT = 26


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of four sizes in two folders, and some that are none."""
    root = tmp_path_factory.mktemp("originals")
    for folder in ("a", "b"):
        (root / folder).mkdir()
    for i in range(COUNT):
        kind = ["png", "jpg", "webp"][i % 3]
        Image.fromarray(make_picture(*SIZES[i % 4], seed=i)).save(root / "ab"[i % 2] / f"p{i:02d}.{kind}")
    good = (root / "a" / "p00.png").read_bytes()
    broken = {"empty.png": b"", "text.jpg": b"hello", "short.png": good[: len(good) // 2]}
    for name, data in broken.items():
        (root / "b" / name).write_bytes(data)
    return root


@pytest.fixture(scope="module")
def common(ray_cluster: None, codec_dir: Path) -> list[str]:
    return ["--codec", str(codec_dir), "--steps", "1", "--quality", "3", "--unit", "8"]


@pytest.fixture(scope="module")
def dataset(originals: Path, common: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished compression."""
    root = tmp_path_factory.mktemp("dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        assert main(["compress", str(originals), f"{root}/out", *common]) == 0
    return f"{root}/out"


def test_every_picture_is_there_once_and_every_broken_one_has_its_reason(dataset: str, originals: Path) -> None:
    rows = read_table(dataset)
    names = [p.relative_to(originals).with_suffix("").as_posix() for p in originals.rglob("*.*")]
    assert sorted(rows.key) == sorted(names)
    good, failed = rows[rows.status == "ok"], rows[rows.status == "failed"].set_index("key")
    assert set(failed.index) == {"b/empty", "b/text", "b/short"}
    assert failed.error["b/empty"] == "the file is empty"
    assert "not a picture" in failed.error["b/text"]
    assert failed.source["b/short"] == f"{originals}/b/short.png"
    written = read_files(dataset)
    assert written.keys() == set(good.key)
    for row in good.itertuples():
        assert len(written[row.key]) == row.bytes
        assert row.quality == 3
        part = storage.read_bytes(f"{dataset}/{row.part}")
        assert part[int(row.offset) :][: int(row.bytes)] == written[row.key]
    summary = json.loads(storage.read_bytes(f"{dataset}/summary.json"))
    assert (summary["pictures"], summary["failures"]) == (COUNT + 3, 3)
    assert sum(summary["failure_reasons"].values()) == 3
    assert summary["qualities"] == {"3": COUNT}


def test_webdataset_duckdb_pandas_and_ray_read_the_output_as_it_is(dataset: str) -> None:
    rows, written = read_table(dataset), read_files(dataset)
    tars = [f"{dataset}/{n}" for n in storage.list_names(dataset) if n.endswith(".tar")]
    assert {s["__key__"]: s["crdf"] for s in wds.WebDataset(tars, shardshuffle=False)} == written
    glob = f"{dataset}/part-*.parquet"
    found = duckdb.sql(f"select count(*), sum(bytes) from '{glob}' where status = 'ok'").fetchall()
    assert found == [(COUNT, sum(map(len, written.values())))]
    read = ray.data.read_parquet(list(map(str, Path(dataset).glob("part-*.parquet")))).take_all()
    assert {(r["key"], r["bytes"]) for r in read if r["status"] == "ok"} == {(k, len(v)) for k, v in written.items()}
    assert {r["key"] for r in read} == set(rows.key)


def test_a_finished_output_is_left_as_it_is(
    dataset: str, originals: Path, common: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(dataset).rglob("*")}
    assert main(["compress", str(originals), dataset, *common]) == 0
    assert "nothing to do: every part is there" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in Path(dataset).rglob("*")} == before


@pytest.mark.slow
def test_tars_of_pictures_and_tables_of_bytes_and_of_paths_give_the_files_that_a_directory_gives(
    dataset: str, originals: Path, common: list[str], tmp_path: Path, tracking: str
) -> None:
    """One picture a batch: what is in a batch together may move a last bit."""
    names = sorted(str(p.relative_to(originals)) for p in originals.rglob("*.*"))
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        for name in names[:14]:
            tar.add(originals / name, name)
        tar.add(__file__, "notes.txt")
    with tarfile.open(tmp_path / "shard-001.tar", "w") as tar:
        for name in names[14:]:
            tar.add(originals / name, name)
    contents = [(originals / n).read_bytes() for n in names]
    pq.write_table(pa.table({"image": contents, "n": range(len(names))}), tmp_path / "bytes.parquet", row_group_size=11)
    pq.write_table(pa.table({"path": [str(originals / n) for n in names]}), tmp_path / "paths.parquet")
    single = [*common, "--batch", "1"]
    assert main(["compress", str(originals), str(tmp_path / "plain"), *single]) == 0
    plain = read_table(str(tmp_path / "plain"))
    expected = Counter(read_files(str(tmp_path / "plain")).values())
    assert len(expected) == COUNT
    for images, options in (
        (f"{tmp_path}/shard-*.tar", []),
        (f"{tmp_path}/bytes.parquet", ["--column", "image"]),
        (f"{tmp_path}/paths.parquet", ["--column", "path"]),
    ):
        out = f"{tmp_path}/from-{Path(images).stem.strip('*-')}"
        assert main(["compress", images, out, *single, *options]) == 0
        assert Counter(read_files(out).values()) == expected
        rows = read_table(out)
        assert sorted(rows.error.dropna()) == sorted(plain.error.dropna())
        assert rows.key.is_unique
    assert set(read_table(f"{tmp_path}/from-shard").key) == {
        f"shard-{int(i >= 14):03d}.tar/{Path(n).with_suffix('')}" for i, n in enumerate(names)
    }


def test_a_tar_that_breaks_off_gives_what_is_whole_and_says_where_it_ends(
    originals: Path, common: list[str], tmp_path: Path, tracking: str
) -> None:
    names = sorted(str(p.relative_to(originals)) for p in originals.rglob("p*.*"))[:6]
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        for name in names:
            tar.add(originals / name, name)
    with tarfile.open(tmp_path / "whole.tar") as tar:
        last = tar.getmember(names[-1])
    cut = (tmp_path / "whole.tar").read_bytes()[: last.offset_data + last.size // 2]
    (tmp_path / "cut.tar").write_bytes(cut)
    assert main(["compress", f"{tmp_path}/cut.tar", f"{tmp_path}/out", *common]) == 0
    rows = read_table(f"{tmp_path}/out")
    assert Counter(rows.status) == {"ok": 5, "failed": 1}
    (failed,) = rows[rows.status == "failed"].itertuples()
    assert failed.source == f"{tmp_path}/cut.tar/{names[-1]}"
    assert "the shard is broken: unexpected end of data" in failed.error


def test_a_hopeless_job_ends_early_and_goes_on_when_it_is_allowed_to(
    originals: Path, common: list[str], tmp_path: Path, tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compress", str(originals), str(tmp_path / "out"), *common]
    assert main([*command, "--max-failures", "2"]) == 1
    said = capsys.readouterr().err
    assert "more than --max-failures 2; the first: " in said
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "summary.json").exists()
    assert main([*command, "--max-failures", "3"]) == 0
    assert Counter(read_table(str(tmp_path / "out")).status) == {"ok": COUNT, "failed": 3}


def test_verified_pixels_are_those_of_the_decoded_file(
    originals: Path, common: list[str], codec_dir: Path, tmp_path: Path, tracking: str
) -> None:
    out = str(tmp_path / "out")
    assert main(["compress", str(originals / "a"), out, *common, "--verify", "pixels:0.5"]) == 0
    rows, written, codec = read_table(out), read_files(out), load_codec(str(codec_dir))
    assert set(rows.quality_source) == {"decoded file", "encoder replay"}
    for row in rows[rows.quality_source == "decoded file"].itertuples():
        original = np.asarray(Image.open(row.source).convert("RGB"))
        assert row.psnr_db == pytest.approx(psnr(original, codec.decompress(written[row.key])), abs=0.05)


def test_pictures_come_back_in_every_format_and_as_shards(dataset: str, codec_dir: Path, tmp_path: Path) -> None:
    written, codec = read_files(dataset), load_codec(str(codec_dir))
    for kind, extension, least_db in (("png", "png", 50.0), ("webp", "webp", 50.0), ("jpeg", "jpg", 25.0)):
        out = tmp_path / kind
        assert main(["decompress", dataset, str(out), "--codec", str(codec_dir), "--format", kind]) == 0
        found = {p.relative_to(out).with_suffix("").as_posix(): p for p in out.rglob(f"*.{extension}")}
        assert found.keys() == written.keys()
        for key in list(written)[::5]:
            assert psnr(codec.decompress(written[key]), np.asarray(Image.open(found[key]))) > least_db
    out = tmp_path / "shards"
    assert main(["decompress", dataset, str(out), "--codec", str(codec_dir), "--shards"]) == 0
    samples = list(wds.WebDataset(list(map(str, out.glob("*.tar"))), shardshuffle=False).decode("rgb8"))
    assert Counter(s["__key__"] for s in samples) == Counter(list(written))


def test_an_interrupted_way_back_does_what_is_missing_and_another_format_is_refused(
    dataset: str, codec_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["decompress", dataset, str(tmp_path), "--codec", str(codec_dir)]
    assert main(command) == 0
    pictures = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    (tmp_path / "_decompressed" / "00001").unlink()
    assert main(command) == 0
    again = {p for p in tmp_path.rglob("*.png") if p.stat().st_mtime_ns != pictures[p]}
    record = compressed.read_record(dataset, 1)
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
    members = compressed.find(dataset, keys)
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
    loader = DataLoader(CompressedPictures(dataset, str(codec_dir)), batch_size=None, num_workers=2)
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


@pytest.mark.slow
def test_two_jobs_on_one_output_do_no_harm(originals: Path, common: list[str], dataset: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "compress", str(originals), str(tmp_path / "out"), *common]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    jobs = [
        subprocess.Popen(
            command, env={**environment, "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/{i}.db"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    said = [job.communicate()[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    assert read_files(str(tmp_path / "out")) == read_files(dataset)
    pd.testing.assert_frame_equal(read_table(str(tmp_path / "out")), read_table(dataset))


@pytest.fixture(scope="module")
def trained_codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A codec whose E and D have learned so much that pictures get better with each quality."""
    torch.manual_seed(0)
    model = CorrDiffModel(tiny())
    with torch.no_grad():
        model.gain.log_gain_QM.sub_(2.5)
    x_NCHW = torch.stack([torch.from_numpy(make_picture(64, 64, seed=s)) for s in range(32)]).permute(0, 3, 1, 2)
    optimizer = torch.optim.Adam([*model.analysis.parameters(), *model.decoder.parameters()], lr=7e-4)
    for _ in range(150):
        x_BCHW = x_NCHW[torch.randint(len(x_NCHW), (4,))].float() / 127.5 - 1
        y_BMhw, g_BM11 = model.latent(x_BCHW, torch.randint(8, (4,)))
        y_BMhw = y_BMhw + torch.rand_like(y_BMhw) - 0.5
        loss = (model.decoder(y_BMhw / g_BM11) - x_BCHW).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    directory = str(tmp_path_factory.mktemp("trained"))
    save_codec(model, model.entropy.freeze(), directory, {"made_by": "the tests"})
    return directory


@pytest.fixture(scope="module")
def seventy_two(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("pictures")
    for i in range(72):
        Image.fromarray(make_picture(*SIZES[i % 4], seed=100 + i)).save(root / f"{i:02d}.png")
    return str(root)


@pytest.mark.slow
def test_a_target_is_met_by_a_quality_for_each_picture_and_kept_when_the_job_goes_on(
    ray_cluster: None, seventy_two: str, trained_codec: str, tmp_path: Path, tracking: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = f"{tmp_path}/out"
    command = ["compress", seventy_two, out, "--codec", trained_codec, "--steps", "1", "--unit", "9"]
    assert main([*command, "--target-psnr", "18.5"]) == 0
    summary = storage.read_json(f"{out}/summary.json")
    assert summary["percentiles"]["psnr_db"]["mean"] == pytest.approx(18.5, rel=0.02)
    assert len(summary["qualities"]) > 2
    before, rate = read_files(out), storage.read_bytes(f"{out}/rate.json")
    (tmp_path / "out" / "summary.json").unlink()
    (tmp_path / "out" / "_units" / "00003.json").unlink()
    capsys.readouterr()
    assert main([*command, "--target-psnr", "18.5"]) == 0
    assert "sampled" not in capsys.readouterr().out
    assert (read_files(out), storage.read_bytes(f"{out}/rate.json")) == (before, rate)
    assert main([*command, "--target-psnr", "18.6"]) == 2
    assert "target_psnr: 18.5 there, 18.6 now" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", ["0", "1"])
def test_a_target_is_met_with_more_psnr_or_fewer_bits_than_at_one_quality(
    ray_cluster: None, seventy_two: str, trained_codec: str, fidelity: str, tmp_path: Path, tracking: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = ["--codec", trained_codec, "--steps", "1", "--unit", "9", "--fidelity", fidelity]

    def means(name: str, *choice: str) -> tuple[float, float]:
        assert main(["compress", seventy_two, f"{tmp_path}/{name}", *options, *choice]) == 0
        summary = storage.read_json(f"{tmp_path}/{name}/summary.json")
        return summary["bpp"], summary["percentiles"]["psnr_db"]["mean"]

    bpp, psnr_db = means("constant", "--quality", "4")
    found_bpp, found_psnr_db = means("bpp", "--target-bpp", str(bpp))
    assert found_bpp == pytest.approx(bpp, rel=0.02)
    assert found_psnr_db > psnr_db
    found_bpp, found_psnr_db = means("psnr", "--target-psnr", str(psnr_db))
    assert found_psnr_db == pytest.approx(psnr_db, rel=0.02)
    assert found_bpp < bpp
    capsys.readouterr()
    assert main(["compress", seventy_two, f"{tmp_path}/no", *options, "--target-psnr", "55"]) == 2
    assert "--target-psnr 55.0 is out of reach" in capsys.readouterr().err


def test_no_pictures_is_a_sentence(common: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    command = ["compress", str(tmp_path / "in"), str(tmp_path / "out"), *common]
    assert main(command) == 2
    assert "for Parquet tables give --column" in capsys.readouterr().err
    pq.write_table(pa.table({"a": [1]}), tmp_path / "in" / "t.parquet")
    assert main([*command, "--column", "b"]) == 2
    assert "has no column 'b'; it has a" in capsys.readouterr().err
    assert main(["compress", str(tmp_path), str(tmp_path / "out"), *common]) == 2
    assert "lies among the pictures of" in capsys.readouterr().err
