"""Numbers and events as a cluster's operators see them, whatever a run is called and whatever goes wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipelines.tracking import run_log
from pipelines.tracking.run_log import RunLog, plain

ODD = "/größe 写/out [1]"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunLog:
    """That of a run with an odd name; Ray is not started."""
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "01000000"))
    monkeypatch.setattr(run_log, "logs_directory", lambda: tmp_path)
    return RunLog("compress", ODD)


def test_a_tag_is_ascii_and_two_names_have_two_tags() -> None:
    assert plain("/a/b c") == "/a/b c"
    assert plain(ODD).isascii()
    assert plain("größe") == r"gr\xf6\xdfe" != plain("grösse")


def test_numbers_of_a_run_with_any_name_are_set_and_written(
    log: RunLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: list[tuple[float, dict[str, str]]] = []

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            for text in (name, description, *tag_keys):  # as Ray's own, which passes them on in ASCII
                text.encode("ascii")

        def set(self, value: float, tags: dict[str, str]) -> None:
            set_to.append((value, {name: tag.encode("ascii").decode() for name, tag in tags.items()}))

    monkeypatch.setattr("ray.util.metrics.Gauge", Gauge)
    log.values({"pictures": 2.0}, step=8)
    log.event("ünd")
    assert set_to == [(2.0, {"kind": "compress", "run": plain(ODD)})]
    (file,) = tmp_path.glob("corrdiff-compress-*.log")
    assert file.name.isascii()
    numbers, event = map(json.loads, file.read_text().splitlines())
    assert (numbers["step"], numbers["pictures"], event["event"]) == (8, 2.0, "ünd")


def test_no_measurement_ends_a_job(
    log: RunLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise UnicodeEncodeError("ascii", "ö", 0, 1, "ordinal not in range(128)")

    monkeypatch.setattr("ray.util.metrics.Gauge", refuse)
    log._path = tmp_path / "no" / "such" / "directory.log"
    for step in range(3):
        log.values({"loss": 1.0}, step)
        log.event("done")
    assert capsys.readouterr().err.count("are not complete") == 1
