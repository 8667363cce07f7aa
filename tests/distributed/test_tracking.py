"""A tracking server that is not there, goes away, or comes back never stops a run or loses what was measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.cli import main
from pipelines.tracking.tracker import EXPERIMENT, RunSpec, Tracker
from tests.support.commands import train_args
from tests.support.servers import MlflowServer, free_port, wait_for

SPEC = RunSpec("a run", {"corrdiff.kind": "test"}, {"lr": 0.1, "none": None})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.stop()


def kept(local: Path) -> list[dict[str, object]]:
    files = sorted((local / "untracked").glob("measurements-*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_what_is_measured_while_the_server_is_away_arrives_when_it_is_back(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tracking.tracker.RETRY_EVERY_S", 0.5)
    said: list[str] = []
    tracker = Tracker(server.uri, SPEC, str(tmp_path / "local"), said.append)
    run_id = tracker.run_id()
    assert run_id is not None
    tracker.metrics({"loss": 3.0}, step=1)
    client = MlflowClient(server.uri)
    wait_for("the first metric", lambda: "loss" in client.get_run(run_id).data.metrics)
    server.stop()
    tracker.metrics({"loss": 2.0}, step=2)
    wait_for("the notice", lambda: bool(said))
    tracker.artifact("pictures/a.txt", b"hello")
    tracker.metrics({"loss": 1.0}, step=3)
    assert len(said) == 1
    assert "cannot be reached" in said[0]
    server.start()
    tracker.close()
    history = client.get_metric_history(run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert [a.path for a in client.list_artifacts(run_id, "pictures")] == ["pictures/a.txt"]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert kept(tmp_path / "local") == []


def test_what_cannot_be_sent_is_kept_in_files(tmp_path: Path) -> None:
    said: list[str] = []
    uri = f"http://user:hunter2@127.0.0.1:{free_port()}"
    tracker = Tracker(uri, SPEC, str(tmp_path), said.append)
    tracker.metrics({"loss": 3.0}, step=7)
    tracker.artifact("pictures/a.txt", b"hello")
    tracker.close("FAILED")
    assert tracker.run_id() is None
    lines = kept(tmp_path)
    assert [(line["what"], line["step"]) for line in lines] == [("metrics", 7), ("tags", 0)]
    assert lines[0]["loss"] == 3.0
    assert (tmp_path / "untracked" / "pictures" / "a.txt").read_bytes() == b"hello"
    assert len(said) == 1
    assert "hunter2" not in said[0]


def test_a_run_goes_on_under_its_own_id(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    first = Tracker(uri, SPEC, str(tmp_path), print)
    run_id = first.run_id()
    first.metrics({"loss": 2.0}, step=1)
    first.close("FAILED")
    second = Tracker(uri, SPEC._replace(run_id=run_id), str(tmp_path), print)
    second.metrics({"loss": 1.0}, step=2)
    second.close()
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert [r.info.run_id for r in runs] == [run_id]
    assert runs[0].data.params == {"lr": "0.1"}
    assert [m.value for m in client.get_metric_history(str(run_id), "loss")] == [2.0, 1.0]


@pytest.mark.slow
def test_training_ends_well_without_its_tracking_server(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    assert main(["train", "phase1", *train_args(shards, str(tmp_path), crops_total=24, log_every=1)]) == 0
    assert capsys.readouterr().out.count("cannot be reached") == 1
    steps = [line["step"] for line in kept(tmp_path / "run" / "phase1") if "loss" in line]
    assert steps == [8, 16, 24]
    for pictures in ("previews", "curves"):
        assert list((tmp_path / "run" / "phase1" / "untracked" / pictures).glob("*.png"))
