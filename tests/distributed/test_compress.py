"""Compressing datasets: inputs of every kind, failures, faults."""

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
import webdataset as wds
from PIL import Image

from corrdiff import load_codec
from corrdiff.metrics import psnr
from pipelines.cli import main
from pipelines.files import storage
from tests.support.drawn import ORIGINALS
from tests.support.results import read_files, read_table


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
    assert (summary["pictures"], summary["failures"]) == (ORIGINALS + 3, 3)
    assert sum(summary["failure_reasons"].values()) == 3
    assert summary["qualities"] == {"3": ORIGINALS}


def test_webdataset_duckdb_pandas_and_ray_read_the_output_as_it_is(dataset: str) -> None:
    rows, written = read_table(dataset), read_files(dataset)
    tars = [f"{dataset}/{n}" for n in storage.list_names(dataset) if n.endswith(".tar")]
    assert {s["__key__"]: s["crdf"] for s in wds.WebDataset(tars, shardshuffle=False)} == written
    glob = f"{dataset}/part-*.parquet"
    found = duckdb.sql(f"select count(*), sum(bytes) from '{glob}' where status = 'ok'").fetchall()
    assert found == [(ORIGINALS, sum(map(len, written.values())))]
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
        tar.add(__file__, "notes")
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
    assert len(expected) == ORIGINALS
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


@pytest.mark.slow
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
    assert Counter(read_table(str(tmp_path / "out")).status) == {"ok": ORIGINALS, "failed": 3}


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
