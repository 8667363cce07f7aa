"""Which directories are checkpoints, which of them go, and what a damaged marker is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch

from corrdiff.errors import JobError
from pipelines.files import storage
from pipelines.train import checkpoints
from pipelines.train.epoch_order import Cursor

PART = "part-0-of-1.safetensors"


def _write(directory: Path, crops: int, finished: bool = True) -> Path:
    """A checkpoint after so many crops, as a worker writes it."""
    there = directory / f"crops-{crops:012d}"
    data = safetensors.torch.save({"ema/w": torch.tensor([float(crops)])})
    storage.write_bytes(str(there / PART), data)
    if finished:
        marker = checkpoints.Complete(crops, crops // 4, Cursor(1, crops), {PART: checkpoints._part_file(data)})
        storage.write_json(str(there / checkpoints.COMPLETE), dataclasses.asdict(marker))
    return there


def _files(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_a_copy_that_somebody_keeps_is_no_checkpoint_and_the_number_of_crops_is_what_is_newest(tmp_path: Path) -> None:
    for crops in (8, 999_999_999_999, 1_000_000_000_000):
        _write(tmp_path, crops)
    for copy in ("old-crops-24", "crops-000000000024-copy", "zz", "crops-24"):
        _write(tmp_path / "elsewhere", 24).rename(tmp_path / copy)
    names = [uri.rpartition("/")[2] for uri in checkpoints.finished(str(tmp_path))]
    assert names == ["crops-1000000000000", "crops-999999999999", "crops-000000000008"]


def test_only_what_a_run_has_written_is_removed(tmp_path: Path) -> None:
    for crops in (8, 16, 24, 32):
        _write(tmp_path, crops, finished=crops != 16)
    kept = _files(tmp_path)
    foreign = {
        "notes.txt": b"a", "crops-000000000008-copy/COMPLETE.json": b"{}", "a/part-0-of-1.safetensors": b"b",
        "crops-000000000008/notes.txt": b"c", "crops-000000000016/COMPLETE.json.bak": b"d", ".hidden": b"e",
    }  # fmt: skip
    unfinished = [
        "crops-000000000016/.corrdiff-00000000000000000000000000000000.tmp",
        "crops-000000000032/.corrdiff-00000000000000000000000000000001.tmp",
    ]
    for name in (*foreign, *unfinished):
        storage.write_bytes(str(tmp_path / name), foreign.get(name, b"half"))
    checkpoints._retire(str(tmp_path), keep=2)
    newest = {
        name: data for name, data in kept.items() if name.startswith(("crops-000000000024", "crops-000000000032"))
    }
    assert _files(tmp_path) == newest | foreign


def test_without_a_finished_checkpoint_nothing_is_removed(tmp_path: Path) -> None:
    _write(tmp_path, 8, finished=False)
    before = _files(tmp_path)
    checkpoints._retire(str(tmp_path), keep=1)
    assert _files(tmp_path) == before


def test_a_checkpoint_of_which_a_bit_is_flipped_is_an_error_or_the_same(tmp_path: Path) -> None:
    there = _write(tmp_path, 8)
    expected = checkpoints.load(str(there))
    for file in (there / checkpoints.COMPLETE, there / PART):
        whole, same = file.read_bytes(), 0
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            try:
                assert checkpoints.load(str(there)) == expected
                same += 1
            except JobError as error:
                assert len(str(error).splitlines()) == 1
        assert same < len(whole) // 8
        file.write_bytes(whole)


def test_a_marker_of_an_older_version_has_no_checksum(tmp_path: Path) -> None:
    there = _write(tmp_path, 8)
    expected = checkpoints.load(str(there))
    marker = storage.read_json(str(there / checkpoints.COMPLETE))
    storage.write_bytes(str(there / checkpoints.COMPLETE), storage.to_json(marker))
    assert checkpoints.load(str(there)) == expected


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_stay_as_are_to_be_kept(tmp_path: Path, keep: int) -> None:
    for crops in range(8, 48, 8):
        _write(tmp_path, crops)
    checkpoints._retire(str(tmp_path), keep)
    assert len(checkpoints.finished(str(tmp_path))) == len(list(tmp_path.iterdir())) == keep
