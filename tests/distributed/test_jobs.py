"""Jobs over HTTP, what preflight finds on a real cluster, and that no secret is left anywhere."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

import pipelines
from cluster import submit
from pipelines.cli import main
from pipelines.files import storage
from tests.support.commands import Road, road_commands, upload
from tests.support.fake_cloud import HEAD_ID, TOKEN, FakeCloud
from tests.support.results import read_files, read_table
from tests.support.servers import MLFLOW_PASSWORD, S3_SECRET, MlflowServer, S3Server, wait_for

SECRETS = S3_SECRET, MLFLOW_PASSWORD, TOKEN


@pytest.fixture(autouse=True)
def _client(cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cloud.client.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_a_good_cluster_is_shown_as_good(cloud: FakeCloud, s3: str, capfd: pytest.CaptureFixture[str]) -> None:
    job = ["preflight", "--storage", f"{s3}/preflight", "--cpus", "4"]
    assert main(["submit", "--address", cloud.jobs, "--", *job]) == 0
    said = capfd.readouterr().out
    assert "fit for the job" in said
    assert re.search(r"nodes +│ 3: 4 CPUs", said)  # two machines came for it
    assert re.search(r"gloo, 3 ranks: [\d.]+ GB/s", said)
    assert "MB/s" in said
    assert "answers on every node" in said


def test_the_watcher_finds_the_node_of_its_machine(cloud: FakeCloud) -> None:
    code = f"from cluster import preemption; print(preemption.own_node('{cloud.address}'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {HEAD_ID, *(machine["nodeId"] for machine in cloud.machines())}


def test_without_the_token_the_job_server_answers_nobody(
    cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("another" * 8)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert main(["submit", "--address", cloud.jobs, "--", "preflight"]) == 2
    assert "wants its token" in capfd.readouterr().err


@pytest.mark.slow
def test_an_unwritable_bucket_a_wrong_tracking_server_and_missing_machines_are_found(
    cloud: FakeCloud, capfd: pytest.CaptureFixture[str]
) -> None:
    job = ["preflight", "--storage", "s3://nobody-has-this/x", "--mlflow", "http://127.0.0.1:9", "--cpus", "7",
           "--wait", "1"]  # fmt: skip
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


@pytest.mark.slow
def test_an_evaluation_that_is_submitted_writes_its_page(
    cloud: FakeCloud, s3: str, photographs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    picture = (photographs / "picture_0.png").read_bytes()
    storage.write_bytes(f"{s3}/submitted/photographs/picture_0.png", picture)
    few = ["--qualities", "4", "--fidelities", "1", "--steps", "2", "--anchors", "jpeg", "--limit", "1"]
    job = ["evaluate", f"{s3}/submitted/photographs", "--out", f"{s3}/submitted/report", *few]
    assert main(["submit", "--address", cloud.jobs, "--", *job]) == 0, capfd.readouterr()
    page = storage.read_bytes(f"{s3}/submitted/report/index.html").decode()
    assert page.startswith("<!doctype html>")
    assert "builtin:tiny" in page
    assert "jpeg" in page


def test_ctrl_c_leaves_the_job_running_and_says_how_to_stop_it(cloud: FakeCloud, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines", "submit", "--address", cloud.jobs, "--job-id", "long"]
    process = subprocess.Popen(
        [*command, "--", "demo", "--out", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for("the job", lambda: '"RUNNING"' in cloud.get("/api/jobs/long").text)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "the job goes on" in said
    stop = re.search(r"ray (job stop --address \S+ long)", said)
    assert stop is not None, said
    assert cloud.get("/api/jobs/long").json()["status"] == "RUNNING"
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *stop[1].split()], check=True, capture_output=True)
    assert cloud.get("/api/jobs/long").json()["status"] == "STOPPED"


def test_the_jobs_leave_no_secret_anywhere(cloud: FakeCloud, s3_storage: S3Server, mlflow_server: MlflowServer) -> None:
    assert_no_secret(cloud, s3_storage, mlflow_server)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_road_as_plain_ray_jobs_on_a_cluster_that_grows_for_them(
    cloud: FakeCloud, s3_storage: S3Server, mlflow_server: MlflowServer, photographs: Path
) -> None:
    road = Road(f"{s3_storage.uri}/cloud-road", mlflow_server.uri)
    upload(photographs, road.root)
    wait_for("the machines of earlier jobs to go", lambda: cloud.machines() == [], timeout_s=120)
    watched = {name: ray_job(cloud, *command) for name, command in road_commands(road.root).items()}
    assert all(watch.machines >= 1 for watch in watched.values())  # the head has no processors
    wait_for("the machines to go", lambda: cloud.machines() == [], timeout_s=120)

    assert len(read_table(f"{road.root}/compressed")) == 8
    assert len(read_files(f"{road.root}/compressed")) == 6
    runs = MlflowClient(road.mlflow).search_runs(["1"])
    ours = [r for r in runs if road.root in r.data.tags.get("corrdiff.run", "") + r.data.params.get("images", "")]
    assert sorted((r.data.tags["corrdiff.kind"], r.info.status) for r in ours) == [
        ("compress", "FINISHED"), ("phase1", "FINISHED"), ("phase2", "FINISHED"),
    ]  # fmt: skip

    assert any(re.search(r'ray_corrdiff_crops_per_s\{.*run="run"', line) for line in watched["train"].metrics)
    (log,) = (cloud.root / "session_latest" / "logs").glob("corrdiff-phase1-run.log")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(line["kind"], line["run"]) for line in lines} == {("phase1", "run")}
    last = [line for line in lines if "crops" in line][-1]
    assert last["crops"] == 51
    assert last["crops_per_s"] > 0
    assert_no_secret(cloud, s3_storage, mlflow_server)


class Watch(threading.Thread):
    """Looks at a cluster while a block runs."""

    def __init__(self, cloud: FakeCloud) -> None:
        super().__init__(daemon=True)
        self.cloud = cloud
        self.machines = 0
        """The most that were there."""
        self.metrics: set[str] = set()
        """Lines about our runs, of what Prometheus would read from the head."""
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(1.0):
            self.machines = max(self.machines, len(self.cloud.machines()))
            self.metrics |= {line for line in self.cloud.metrics() if line.startswith("ray_corrdiff")}

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def ray_job(cloud: FakeCloud, *command: str) -> Watch:
    """What people know: the plain command, in the project's directory."""
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", cloud.jobs]
    with Watch(cloud) as watch:
        done = subprocess.run(
            [*submit, "--working-dir", ".", "--", "python", "-m", "pipelines", *command],
            cwd=Path(pipelines.__file__).parent.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return watch


def assert_no_secret(cloud: FakeCloud, s3_storage: S3Server, mlflow_server: MlflowServer) -> None:
    """In Ray's logs, in what MLflow has, in any object in storage, in what is sent along, in the process list, in what
    the job server says."""
    places = [*files_of(cloud.root), *files_of(mlflow_server.root), *files_of(s3_storage.root)]
    places = [path for path in places if path != cloud.root / "token"]
    with submit.packaged() as sent:
        places += [*files_of(sent)]
        assert len(places) > 100
        found = [(str(path), secret) for path in places for secret in SECRETS if secret.encode() in path.read_bytes()]
    assert found == []
    seen = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    seen = [" ".join(words) for words in seen if "rclone" not in words[0]]  # the test's own server has its keys there
    assert len(seen) > 10
    assert [line for line in seen if any(secret in line for secret in SECRETS)] == []
    jobs = cloud.get("/api/jobs/").text
    assert "submission_id" in jobs
    assert not any(secret in jobs for secret in SECRETS)


def files_of(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
