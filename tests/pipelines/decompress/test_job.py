from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corrdiff.codec_directory import read_config
from corrdiff.errors import JobError, UsageError
from pipelines.dataset import format as compressed
from pipelines.dataset.format import INDEX, SUMMARY, Plan, Stage
from pipelines.dataset.index import Member, all_keys, find
from pipelines.dataset.summary import Summary
from pipelines.dataset.units import File, Record, create_record
from pipelines.decompress.command import run_decompression
from pipelines.decompress.config import DecompressConfig
from pipelines.decompress.job import DONE, decompress_dataset
from pipelines.decompress.stages import open_dataset
from pipelines.display.progress import Progress
from pipelines.files import storage
from pipelines.options import identity

PNG = DecompressConfig(workers=1)


@pytest.fixture
def dataset(codec_dir: Path, tmp_path: Path) -> Iterator[str]:
    """A finished compression of two units, of whose seven pictures two failed; its parts are not there."""
    uri, fingerprint = str(tmp_path / "compressed"), read_config(str(codec_dir))[1]
    compressed.claim_plan(uri, Plan({"codec": fingerprint}, (Stage("_plan/1", 2, 7),)))
    for unit, pictures in enumerate((4, 3)):
        file = File("part", 1, "")
        create_record(uri, Record(unit, file, file, pictures, 1, 300, 4096, {}))
    summary = Summary(7, 2, 600, 8192, 0.5, {}, {"gone": 2}, {"4": 5}, fingerprint)
    storage.write_json(storage.join(uri, SUMMARY), dataclasses.asdict(summary))
    _write_index(uri, ["a", "b", "sub/c", "sub/d", "e"])
    yield uri


def _write_index(uri: str, keys: list[str]) -> None:
    buffer = io.BytesIO()
    places = [Member(key, "part-00000-0123456789ab.tar", 512, 10)._asdict() for key in sorted(keys)]
    pq.write_table(pa.Table.from_pylist(places), buffer, write_page_checksum=True)
    storage.write_bytes(storage.join(uri, INDEX), buffer.getvalue())


def _mark(out: Path, *units: int) -> None:
    """Say that a job of the default options has done some units."""
    what = {"identity": {"dataset": "_plan/1", **identity(PNG)}}
    storage.write_json(str(out / DONE / "what.json"), what)
    for unit in units:
        storage.write_bytes(str(out / DONE / f"{unit:05d}"), b"")


def test_a_dataset_is_opened_with_the_codec_that_wrote_it(dataset: str, codec_dir: Path) -> None:
    job = open_dataset(dataset, str(codec_dir), PNG)
    assert (job.dataset, job.pictures, job.plan.units, job.config) == (dataset, 5, 2, PNG)
    with pytest.raises(UsageError, match="give the codec that wrote it"):
        open_dataset(dataset, "builtin:tiny", PNG)


def test_there_are_no_uncorrected_pictures_of_files_without_steps(codec_dir: Path, tmp_path: Path) -> None:
    uri, fingerprint = str(tmp_path / "compressed"), read_config(str(codec_dir))[1]
    compressed.claim_plan(uri, Plan({"codec": fingerprint, "steps": 0}, (Stage("_plan/1", 1, 1),)))
    file = File("part", 1, "")
    create_record(uri, Record(0, file, file, 1, 0, 300, 4096, {}))
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


def _begin(
    dataset: str, out: Path, codec_dir: Path, config: DecompressConfig = PNG, keys: tuple[str, ...] = ()
) -> None:
    """The job up to the moment at which it would start Ray."""
    next(decompress_dataset(dataset, str(out), str(codec_dir), config, keys))


@pytest.mark.parametrize(
    ("config", "taken"), [(PNG, "sub/c.png"), (dataclasses.replace(PNG, shards=True), "shard-00000-000.tar")]
)
def test_pictures_that_were_there_before_are_left_alone_and_named(
    dataset: str, codec_dir: Path, tmp_path: Path, config: DecompressConfig, taken: str
) -> None:
    out = tmp_path / "photos"
    for name in (taken, "notes.txt", "a.jpg"):
        storage.write_bytes(str(out / name), b"the original")
    with pytest.raises(UsageError, match=rf"{taken} exists, and is none of this job's; .*--overwrite"):
        _begin(dataset, out, codec_dir, config)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.*")) == sorted([taken, "notes.txt", "a.jpg"])
    _begin(dataset, out, codec_dir, dataclasses.replace(config, overwrite=True))
    assert (out / taken).read_bytes() == b"the original"


def test_a_directory_with_other_files_is_taken_and_the_same_job_goes_on_among_its_own(
    dataset: str, codec_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    storage.write_bytes(str(out / "c.png"), b"somebody's")
    _begin(dataset, out, codec_dir)
    storage.write_bytes(str(out / "a.png"), b"written before it was killed")
    _begin(dataset, out, codec_dir)


def test_marks_of_units_that_nobody_claimed_are_none_of_this_job(dataset: str, codec_dir: Path, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "out" / DONE / "00000"), b"")
    with pytest.raises(UsageError, match="of a job that is not known"):
        _begin(dataset, tmp_path / "out", codec_dir)


def test_pictures_are_not_written_into_the_dataset(dataset: str, codec_dir: Path) -> None:
    for out in (Path(dataset), Path(dataset) / "pictures"):
        with pytest.raises(UsageError, match="lies in the compressed dataset"):
            _begin(dataset, out, codec_dir)


@pytest.mark.parametrize("key", ["写" * 84, "sub/" + "l" * 252, "../a"])
@pytest.mark.parametrize("chosen", [False, True])
def test_a_key_that_can_be_no_name_is_said_before_the_work_starts(
    dataset: str, codec_dir: Path, tmp_path: Path, key: str, chosen: bool
) -> None:
    _write_index(dataset, ["a", "l" * 251, key])
    keys = (key,) if chosen else ()
    with pytest.raises(UsageError, match=r"the key '.*' (leads out|is too long).*--shards"):
        _begin(dataset, tmp_path / "out", codec_dir, keys=keys)
    _begin(dataset, tmp_path / "out", codec_dir, dataclasses.replace(PNG, shards=True), keys)


def test_an_index_of_which_a_bit_is_flipped_gives_the_same_or_an_error(dataset: str) -> None:
    keys = ["a", "b", "sub/c"]
    _write_index(dataset, keys)
    whole, same, refused = storage.read_bytes(storage.join(dataset, INDEX)), 0, 0
    asked = find(dataset, keys)
    for bit in range(0, 8 * len(whole), 13):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        storage.write_bytes(storage.join(dataset, INDEX), bytes(flipped))
        try:
            assert find(dataset, keys) == asked
            assert list(all_keys(dataset)) == keys
            same += 1
        except (UsageError, JobError):
            refused += 1
    assert same + refused == -(-8 * len(whole) // 13)
    assert refused > same
