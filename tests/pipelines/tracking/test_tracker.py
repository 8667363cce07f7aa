"""Which MLflow run belongs to a directory, and where MLflow is."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from corrdiff.errors import UsageError
from pipelines.tracking.lineage import lineage_tags
from pipelines.tracking.tracker import RunSpec, Tracker, record_run, recorded_run, tracking_uri


def test_the_run_of_a_directory_is_found_again(tmp_path: Path) -> None:
    assert recorded_run(str(tmp_path / "run")) is None
    record_run(str(tmp_path / "run"), "abc123")
    assert recorded_run(str(tmp_path / "run")) == "abc123"
    assert recorded_run(str(tmp_path / "run" / "mlflow.json")) is None  # a file, in which there is nothing


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("{", "is damaged: not JSON"),
        ("{}", "is damaged, or of another version (run_id: Field required)"),
        ('{"run_id": 3}', "is damaged, or of another version (run_id: "),
        ('{"run_id": "a", "experiment": 1}', "a field 'experiment' that is not known"),
    ],
)
def test_a_record_that_is_damaged_is_one_sentence(record: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow.json").write_text(record)
    with pytest.raises(UsageError) as caught:
        recorded_run(str(tmp_path))
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("given", [None, "sqlite:///mlflow.db"])
def test_a_job_whose_directory_goes_away_needs_a_server(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if given:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri().startswith("sqlite:///")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UsageError, match="a Ray job needs an MLflow server"):
        tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://10.0.0.1:5000")
    assert tracking_uri() == "http://10.0.0.1:5000"


def test_tags_lead_to_the_training_runs_of_a_codec_and_to_nothing_else() -> None:
    provenance = {"phase1_mlflow_run": "a", "phase2_mlflow_run": "b", "preset": "tiny"}
    assert lineage_tags(provenance) == {"corrdiff.phase1_mlflow_run": "a", "corrdiff.phase2_mlflow_run": "b"}
    assert lineage_tags(provenance, "2_")["corrdiff.2_phase1_mlflow_run"] == "a"


def test_a_path_that_no_address_of_a_database_can_have_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "what?").mkdir()
    monkeypatch.chdir(tmp_path / "what?")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UsageError, match=r"no sqlite address can have the '\?' in that path: set MLFLOW_TRACKING_URI"):
        tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://10.0.0.1:5000")
    assert tracking_uri() == "http://10.0.0.1:5000"


def test_an_artifact_store_that_refuses_holds_nothing_else_back(tmp_path: Path) -> None:
    uri, said = f"sqlite:///{tmp_path}/mlflow.db", []
    (tmp_path / "mlartifacts").write_text("a file where artifacts should go")
    tracker = Tracker(uri, RunSpec("compress", {"corrdiff.kind": "compress"}, {}), str(tmp_path / "out"), said.append)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.artifact("pictures/a.png", b"abc")
    tracker.metrics({"loss": 0.5, "after": 7.0}, 3)
    tracker.tags({"done": "yes"})
    tracker.artifact("b.png", b"def")
    tracker.close("FINISHED")
    run = MlflowClient(uri).get_run(str(tracker.run_id()))
    assert (run.info.status, run.data.metrics, run.data.tags["done"]) == (
        "FINISHED", {"loss": 0.5, "after": 7.0}, "yes",
    )  # fmt: skip
    assert len(said) == 1
    assert "takes no artifacts" in said[0]
    kept = {p.relative_to(tmp_path / "out" / "untracked").as_posix(): p.read_bytes()
            for p in (tmp_path / "out" / "untracked").rglob("*") if p.is_file()}  # fmt: skip
    assert kept == {"pictures/a.png": b"abc", "b.png": b"def"}


def test_what_cannot_be_kept_either_is_said_and_ends_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "out").write_text("a file where the output should be")
    tracker = Tracker("sqlite:////proc/no/such.db", RunSpec("compress", {}, {}), str(tmp_path / "out"), said.append)
    tracker.metrics({"loss": 1.0})
    tracker.close("FINISHED")
    assert "could not be written" in said[-1]
