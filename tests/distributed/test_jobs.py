"""Jobs over HTTP, what preflight finds on a real cluster, and that no secret is left anywhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster import submit
from pipelines.cli import main

from ..fake_cloud import FakeCloud
from ..servers import S3_SECRET, MlflowServer, S3Server, wait_for
from .conftest import MLFLOW_PASSWORD, Road

SECRETS = S3_SECRET, MLFLOW_PASSWORD


def test_a_good_cluster_is_shown_as_good(cloud: FakeCloud, s3: str, capfd: pytest.CaptureFixture[str]) -> None:
    job = ["preflight", "--storage", f"{s3}/preflight"]
    assert main(["submit", "--address", cloud.jobs, "--", *job]) == 0
    said = capfd.readouterr().out
    assert "fit for the job" in said
    assert "MB/s" in said
    assert "answers on every node" in said


def test_an_unwritable_bucket_a_wrong_tracking_server_and_missing_machines_are_found(
    cloud: FakeCloud, capfd: pytest.CaptureFixture[str]
) -> None:
    job = ["preflight", "--storage", "s3://nobody-has-this/x", "--mlflow", "http://127.0.0.1:9", "--nodes", "7"]
    assert main(["submit", "--address", cloud.jobs, "--", *job]) == 1
    said = capfd.readouterr().out
    assert "not fit: nodes, storage, MLflow" in said
    assert "http://127.0.0.1:9 does not answer" in said


def test_a_wrong_command_gives_the_jobs_own_exit_code_and_sentence(
    cloud: FakeCloud, capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["submit", "--address", cloud.jobs, "--", "compress", "s3://bucket/none", "out", "--codec", "/none"]) == 2
    )
    assert "'out' would be in the job's temporary directory" in capfd.readouterr().out


def test_ctrl_c_leaves_the_job_running_and_says_how_to_stop_it(cloud: FakeCloud, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "submit", "--address", cloud.jobs, "--job-id", "long"]
    process = subprocess.Popen(
        [*command, "--", "demo", "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    client = JobSubmissionClient(cloud.jobs)
    running = [JobStatus.RUNNING]
    wait_for("the job", lambda: [j.status for j in client.list_jobs() if j.submission_id == "long"] == running)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "the job goes on" in said
    stop = re.search(r"ray (job stop --address \S+ long)", said)
    assert stop is not None, said
    assert client.get_job_status("long") == JobStatus.RUNNING
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *stop[1].split()], check=True, capture_output=True)
    assert client.get_job_status("long") == JobStatus.STOPPED


def test_a_runs_numbers_are_in_rays_metrics_and_its_events_in_rays_logs(road: Road, cloud: FakeCloud) -> None:
    (log,) = (cloud.root / "session_latest" / "logs").glob("corrdiff-phase1-run.log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(line["kind"], line["run"]) for line in lines} == {("phase1", "run")}
    last = [line for line in lines if "images" in line][-1]
    assert last["images"] == 51
    assert last["images_per_s"] > 0


def test_no_secret_is_left_anywhere(
    road: Road, cloud: FakeCloud, s3_storage: S3Server, mlflow_server: MlflowServer
) -> None:
    """After all jobs: logs, what MLflow has, all objects in storage, what was sent along, the process list."""
    places = [*files_of(cloud.root), *files_of(mlflow_server.root), *files_of(s3_storage.root)]
    with submit.packaged() as sent:
        places += [*files_of(sent)]
        assert len(places) > 100
        found = [(str(path), secret) for path in places for secret in SECRETS if secret.encode() in path.read_bytes()]
    assert found == []
    seen = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    seen = [" ".join(words) for words in seen if "rclone" not in words[0]]  # the test's own server has its keys there
    assert len(seen) > 10
    assert [line for line in seen if any(secret in line for secret in SECRETS)] == []
    jobs = requests.get(f"{cloud.jobs}/api/jobs/", timeout=30).text
    assert "train all" in jobs
    assert not any(secret in jobs for secret in SECRETS)


def files_of(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
