"""An empty place on each kind of storage, and a look at what is read from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.files import storage


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where nothing is yet: on the disk, and in memory behind fsspec."""
    return str(tmp_path / "place") if request.param == "local" else f"memory://tests{tmp_path}"


@pytest.fixture
def ranges_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the ranges that were read of files so far, in bytes."""
    lengths: list[int] = []
    original = storage.read_range

    def counting(uri: str, start: int, end: int) -> bytes:
        lengths.append(end - start)
        return original(uri, start, end)

    monkeypatch.setattr(storage, "read_range", counting)
    return lengths
