from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from corrdiff.codec_directory import read_config
from corrdiff.errors import UsageError
from pipelines.dataset import format as compressed
from pipelines.dataset.format import SUMMARY, File, Plan, Record
from pipelines.dataset.summary import Summary
from pipelines.decompress.command import run_decompression
from pipelines.decompress.config import DecompressConfig
from pipelines.decompress.job import DONE, decompress_dataset
from pipelines.decompress.stages import open_dataset
from pipelines.display.progress import Progress
from pipelines.files import storage

PNG = DecompressConfig(workers=1)


@pytest.fixture
def dataset(codec_dir: Path, tmp_path: Path) -> Iterator[str]:
    """A finished compression of two units, of whose seven pictures two failed; its parts are not there."""
    uri, fingerprint = str(tmp_path / "compressed"), read_config(str(codec_dir))[1]
    compressed.claim_plan(uri, Plan({"codec": fingerprint}, "_plan/1", units=2, pictures=7))
    for unit, pictures in enumerate((4, 3)):
        file = File("part", 1, "")
        compressed.create_record(uri, Record(unit, file, file, pictures, 1, 300, 4096, {}))
    summary = Summary(7, 2, 600, 8192, 0.5, {}, {"gone": 2}, {"4": 5}, fingerprint)
    storage.write_json(storage.join(uri, SUMMARY), dataclasses.asdict(summary))
    yield uri


def _mark(out: Path, *units: int) -> None:
    for unit in units:
        storage.write_bytes(str(out / DONE / f"{unit:05d}"), b"")


def test_a_dataset_is_opened_with_the_codec_that_wrote_it(dataset: str, codec_dir: Path) -> None:
    job = open_dataset(dataset, str(codec_dir), PNG)
    assert (job.dataset, job.pictures, job.plan.units, job.config) == (dataset, 5, 2, PNG)
    with pytest.raises(UsageError, match="give the codec that wrote it"):
        open_dataset(dataset, "builtin:tiny", PNG)


def test_there_are_no_uncorrected_pictures_of_files_without_steps(codec_dir: Path, tmp_path: Path) -> None:
    uri, fingerprint = str(tmp_path / "compressed"), read_config(str(codec_dir))[1]
    compressed.claim_plan(uri, Plan({"codec": fingerprint, "steps": 0}, "_plan/1", units=1, pictures=1))
    file = File("part", 1, "")
    compressed.create_record(uri, Record(0, file, file, 1, 0, 300, 4096, {}))
    summary = Summary(1, 0, 300, 4096, 0.5, {}, {}, {"4": 1}, fingerprint)
    storage.write_json(storage.join(uri, SUMMARY), dataclasses.asdict(summary))
    assert open_dataset(uri, str(codec_dir), PNG).pictures == 1
    with pytest.raises(UsageError, match="compressed with --steps 0, so there are no uncorrected pictures"):
        open_dataset(uri, str(codec_dir), dataclasses.replace(PNG, decoding="uncorrected"))


def test_where_every_unit_is_done_there_is_nothing_to_do(
    dataset: str, codec_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _mark(out, 0, 1)
    assert list(decompress_dataset(dataset, str(out), str(codec_dir), PNG)) == [Progress(0, 0, "pictures")]
    assert run_decompression(dataset, str(out), str(codec_dir), PNG) == 0
    printed = capsys.readouterr().out
    assert "nothing to do: every picture is there" in printed
    assert f"{out}: 0 pictures" in printed


def test_the_pictures_of_the_units_that_are_left_are_counted(dataset: str, codec_dir: Path, tmp_path: Path) -> None:
    _mark(tmp_path / "out", 1)
    steps = decompress_dataset(dataset, str(tmp_path / "out"), str(codec_dir), PNG)
    assert next(steps) == Progress(0, 3, "pictures")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (DecompressConfig(format="jpeg"), "format: 'png' there, 'jpeg' now"),
        (DecompressConfig(shards=True), "shards: False there, True now"),
        (DecompressConfig(decoding="privileged"), "decoding: 'corrected' there, 'privileged' now"),
    ],
)
def test_other_pictures_are_not_mixed_with_those_that_are_there(
    dataset: str, codec_dir: Path, tmp_path: Path, changed: DecompressConfig, message: str
) -> None:
    out = tmp_path / "out"
    _mark(out, 0, 1)
    for workers in (1, 2):
        list(decompress_dataset(dataset, str(out), str(codec_dir), DecompressConfig(workers=workers)))
    with pytest.raises(UsageError, match=rf"out holds other pictures \({message}\); choose another directory"):
        list(decompress_dataset(dataset, str(out), str(codec_dir), changed))
