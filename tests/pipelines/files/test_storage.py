from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrdiff.errors import JobError, UsageError
from corrdiff.uris import redacted
from pipelines.files import retries, storage
from pipelines.tracking.tracker import tracking_uri


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = str(tmp_path / "a.bin")
    storage.write_bytes(uri, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    with pytest.raises(JobError, match="No space left"):
        storage.write_bytes(uri, b"new")
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_missing_object_is_final_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "none"))


def test_damaged_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UsageError, match=r"a\.json is damaged: not JSON"):
        storage.read_json(str(tmp_path / "a.json"))


def test_names_of_a_missing_directory_are_none(tmp_path: Path) -> None:
    assert storage.list_names(str(tmp_path / "none")) == []


def test_a_file_is_told_from_a_directory_and_from_nothing(place: str) -> None:
    storage.write_bytes(f"{place}/a/b", b"x")
    assert storage.is_file(f"{place}/a/b")
    assert not storage.is_file(f"{place}/a")
    assert not storage.is_file(f"{place}/c")


def test_of_two_writers_that_create_the_first_one_wins(place: str) -> None:
    assert storage.create_bytes(f"{place}/deep/a", b"first")
    assert not storage.create_bytes(f"{place}/deep/a", b"second")
    assert storage.read_bytes(f"{place}/deep/a") == b"first"
    assert storage.list_names(f"{place}/deep") == ["a"]


def test_one_of_many_writers_that_create_at_once_wins(tmp_path: Path) -> None:
    uri = str(tmp_path / "a")
    values = [bytes([i]) * 1000 for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda value: storage.create_bytes(uri, value), values))
    assert created.count(True) == 1
    assert storage.read_bytes(uri) == values[created.index(True)]
    assert storage.list_names(str(tmp_path)) == ["a"]


def test_a_writer_that_looked_too_early_does_not_overwrite(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{place}/a", b"first")
    fs, _ = storage.open_fs(place)
    original, calls = type(fs).exists, []

    def too_early(self: object, path: str, **kwargs: object) -> bool:
        calls.append(path)
        return len(calls) > 1 and bool(original(self, path, **kwargs))

    monkeypatch.setattr(type(fs), "exists", too_early)
    assert not storage.create_bytes(f"{place}/a", b"second")
    assert storage.read_bytes(f"{place}/a") == b"first"
    assert storage.list_names(place) == ["a"]


def test_creating_is_tried_again_after_a_passing_error(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    fs, _ = storage.open_fs(place)
    original, calls = type(fs).exists, []

    def fails_once(self: object, path: str, **kwargs: object) -> bool:
        calls.append(path)
        if len(calls) == 1:
            raise OSError("503 SlowDown")
        return bool(original(self, path, **kwargs))

    monkeypatch.setattr(type(fs), "exists", fails_once)
    assert storage.create_bytes(f"{place}/a", b"x")
    assert len(calls) >= 2


def test_ranges_are_read_from_anywhere(place: str) -> None:
    data = bytes(range(256)) * 8
    storage.write_bytes(f"{place}/a", data)
    with storage.open_ranges(f"{place}/a", buffer_bytes=64) as file:
        assert file.read(10) == data[:10]
        assert file.seek(-5, io.SEEK_END) == len(data) - 5
        assert file.read() == data[-5:]
        assert file.seek(100) == file.tell() == 100
        assert file.read(200) == data[100:300]
        assert file.seek(10, io.SEEK_CUR) == 310
        assert file.read(1) == data[310:311]
        file.seek(len(data) + 9)
        assert file.read(3) == b""
        file.seek(0)
        assert file.read() == data


@settings(max_examples=25)
@given(steps=st.lists(st.tuples(st.integers(0, 300), st.integers(-1, 300)), max_size=12), buffer=st.integers(1, 128))
def test_ranges_read_as_a_file_does(steps: list[tuple[int, int]], buffer: int) -> None:
    data = bytes(range(256))
    storage.write_bytes("memory://storage-ranges/a", data)
    expected = io.BytesIO(data)
    with storage.open_ranges("memory://storage-ranges/a", buffer) as file:
        for position, size in steps:
            assert file.seek(position) == expected.seek(position)
            assert file.read(size) == expected.read(size)
            assert file.tell() == expected.tell()


def test_ranges_take_of_an_object_what_is_read_and_a_buffer_more(tmp_path: Path, ranges_read: list[int]) -> None:
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    with storage.open_ranges(str(tmp_path / "a"), buffer_bytes=1000) as file:
        assert ranges_read == []
        file.seek(500_000)
        assert len(file.read(10)) == 10
    assert sum(ranges_read) <= 1010


def test_a_range_goes_on_after_a_passing_error(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    monkeypatch.setattr(storage, "CHUNK_BYTES", 100)
    data = bytes(range(250))
    storage.write_bytes(f"{place}/a", data)
    fs, _ = storage.open_fs(place)
    original, asked = type(fs).cat_file, []

    def breaks_at_100(self: object, path: str, start: int | None = None, end: int | None = None) -> bytes:
        asked.append(start)
        if asked.count(100) == 1 and start == 100:
            raise TimeoutError("no answer")
        part: bytes = original(self, path, start=start, end=end)
        return part[:-1] if asked.count(200) == 1 and start == 200 else part

    monkeypatch.setattr(type(fs), "cat_file", breaks_at_100)
    assert storage.read_range(f"{place}/a", 0, 250) == data
    assert asked == [0, 100, 100, 200, 200]


def test_ranges_of_a_missing_object_are_an_error_at_once(place: str) -> None:
    with pytest.raises(FileNotFoundError):
        storage.open_ranges(f"{place}/none")


def test_an_object_that_shrinks_while_it_is_read_is_named(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    storage.write_bytes(f"{place}/a", bytes(1000))
    with storage.open_ranges(f"{place}/a", buffer_bytes=10) as file:
        storage.write_bytes(f"{place}/a", bytes(500))
        with pytest.raises(JobError, match="is truncated: it ends at byte 500, byte 1,000 is needed"):
            file.read()


def test_a_path_that_a_ray_job_would_lose_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for lasting in ("s3://bucket/runs", "/data/runs", "memory://a"):
        assert storage.absolute(lasting) == lasting
    with pytest.raises(UsageError, match="'runs' would be in the job's temporary directory"):
        storage.absolute("runs")
    for lost in ("", "sqlite:///mlflow.db", None):
        if lost is None:
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", lost)
        with pytest.raises(UsageError, match="a Ray job needs an MLflow server"):
            tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://10.0.0.5:5000")
    assert tracking_uri() == "http://10.0.0.5:5000"


@pytest.mark.parametrize(
    "uri",
    ["s3://key:planted@bucket/a", "sftp://me:planted@host/a", "ftp://:planted@host", "simplecache::s3://k:planted/x@b"],
)
def test_a_password_in_a_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UsageError, match="leave user, password") as raised:
        storage.absolute(uri)
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize("uri", ["s3://bucket/a@2x:b.png", "sftp://me@host:22/a", "gs://b/x@y"])
def test_a_uri_without_a_password_is_none(uri: str) -> None:
    assert storage.absolute(uri) == uri


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:planted@host:5000/a", "https://host:5000/a"), ("https://host/a", "https://host/a"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"), ("postgresql://me:pl@nted@host/db", "postgresql://host/db"),
    ],
)  # fmt: skip
def test_a_uri_in_a_log_is_without_user_and_password(uri: str, shown: str) -> None:
    assert redacted(uri) == shown
