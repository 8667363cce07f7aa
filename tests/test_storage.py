from __future__ import annotations

from pathlib import Path

import pytest

from corrdiff.errors import JobError, UsageError
from pipelines import storage


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "a.bin")
    storage.write_bytes(uri, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    monkeypatch.setattr(storage, "FIRST_DELAY_S", 0.0)
    with pytest.raises(JobError, match="No space left"):
        storage.write_bytes(uri, b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_passing_error_is_tried_again_and_a_lasting_one_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FIRST_DELAY_S", 0.0)
    calls = []

    def fails_twice() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("503 SlowDown")
        return "done"

    assert storage.with_retries("reading x", fails_twice) == "done"

    def always() -> None:
        raise TimeoutError("no answer")

    with pytest.raises(JobError, match="reading x failed 5 times, last with: no answer"):
        storage.with_retries("reading x", always)


def test_a_missing_object_is_final_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "none"))


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UsageError, match=r"a\.json is damaged: not JSON"):
        storage.read_json(str(tmp_path / "a.json"))


def test_names_of_a_missing_directory_are_none(tmp_path: Path) -> None:
    assert storage.list_names(str(tmp_path / "none")) == []
