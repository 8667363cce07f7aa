"""What goes to the cluster, and what does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pathspec
import pytest
from ray.job_submission import JobStatus

from cluster import submit
from cluster.submit import Submit
from corrdiff.errors import JobError, UsageError
from pipelines.cli import main
from tests.support.servers import free_port

ROOT = Path(submit.__file__).parent.parent


def test_the_code_of_the_packages_is_sent_and_runs(tmp_path: Path) -> None:
    with submit.packaged() as directory:
        sent = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}
        said = subprocess.run(
            [sys.executable, "-c", "import pipelines.cli, corrdiff, cluster.preflight; print(pipelines.__file__)"],
            cwd=directory, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert Path(said.stdout.strip()).parent.parent == directory.resolve()
    there = {str(f.relative_to(ROOT)) for package in submit.PACKAGES for f in (ROOT / package).rglob("*.py")}
    assert there <= sent
    assert {Path(name).parts[0] for name in sent} == set(submit.PACKAGES)
    assert not [name for name in sent if "__pycache__" in name]


def test_what_lies_beside_the_code_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cluster/submit.py", "corrdiff/codec.py", "corrdiff/builtin/config.json", "corrdiff/__pycache__/x.py",
                 "corrdiff/.env", "pipelines/.aws/credentials.json", "pipelines/notes.txt", ".env", "shards/a.tar",
                 "secret.json"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    monkeypatch.setattr(submit, "__file__", str(tmp_path / "cluster" / "submit.py"))
    with submit.packaged() as directory:
        sent = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}
    assert sent == {"cluster/submit.py", "corrdiff/codec.py", "corrdiff/builtin/config.json"}


@pytest.mark.parametrize("name", [
        "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "db_password", "APIKEY", "DB_PASS", "OPENAI_KEY", "SSH_PRIVATE_KEY",
        "PASSPHRASE", "GH_PAT", "PGPASS", "COOKIE", "ENCRYPTION_KEY", "BASIC_AUTH",
    ],
)  # fmt: skip
def test_secrets_are_not_taken_for_the_environment(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}.*seen by everyone"):
        submit.submit(Submit(env=(f"{name}=planted",)), ["train"])


@pytest.mark.parametrize(
    "command", [["compress", "ftp://me:planted@host/a"], ["train", "--storage=s3://key:planted@bucket/x"]]
)
def test_a_password_in_the_command_is_refused_and_not_repeated(command: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        submit.submit(Submit(), command)
    assert "planted" not in str(raised.value)


@pytest.mark.parametrize("setting", ["NOVALUE", "=x", "A B=c"])
def test_an_environment_that_is_none_is_refused(setting: str) -> None:
    with pytest.raises(UsageError, match="NAME=VALUE"):
        submit.submit(Submit(env=(setting,)), ["train"])


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", 1, 1), ("FAILED", None, 1), ("STOPPED", None, 1)],
)
def test_the_exit_code_is_the_jobs(status: str, driver: int | None, code: int) -> None:
    assert submit.exit_code(SimpleNamespace(status=status, driver_exit_code=driver, message="")) == code


class JobServer:
    """A job's log, whose connection breaks as it is told."""

    def __init__(self, *breaks: Exception, at: int) -> None:
        self.breaks, self.at = list(breaks), at

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for i, text in enumerate(["one\n", "two\n", "three\n"]):
            if i == self.at and self.breaks:
                raise self.breaks.pop(0)
            yield text

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=2, message="")


def test_a_log_goes_on_where_a_connection_broke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "RECONNECT_S", 0.0)
    broken = [
        RuntimeError("WebSocket connection closed unexpectedly"),
        aiohttp.ServerDisconnectedError(),
        OSError("reset"),
    ]
    assert submit.follow(JobServer(*broken, at=2), "job") == 2
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


def test_a_job_server_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "RECONNECT_S", 0.0)
    monkeypatch.setattr(submit, "LOST_S", 0.2)
    with pytest.raises(JobError, match="job long-one may go on"):
        submit.follow(JobServer(*[OSError("gone")] * 100_000, at=0), "long-one")


def test_where_there_is_no_cluster_that_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--address", f"http://127.0.0.1:{free_port()}", "--", "train", "all"]) == 2
    said = capfd.readouterr().err
    assert "no Ray job server at http://127.0.0.1" in said
    assert "Traceback" not in said


def test_a_command_is_wanted(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["submit"]) == 2
    assert "what is to be run?" in capfd.readouterr().err


@pytest.mark.parametrize("command", ["submit", "preflight"])
def test_the_commands_for_clusters_have_help(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "Example: corrdiff" in " ".join(capfd.readouterr().out.split())


def test_the_plain_command_sends_code_alone_whatever_lies_in_the_checkout(tmp_path: Path) -> None:
    """As Ray reads .rayignore: by gitignore's rules, directory by directory."""
    root = Path(submit.__file__).resolve().parent.parent
    ignored = pathspec.PathSpec.from_lines("gitwildmatch", (root / ".rayignore").read_text().splitlines(keepends=True))
    code = [str(file) for file in submit.package_files(root)]
    others = [
        "shards/shard-00000.tar", "compressed/part-00000.tar", "pictures/a.png", "report/index.html",
        "codec/config.json", "demo-out/a", "runs/first/run.json", "mlflow.db", ".env", ".git/config", "my photos/a.jpg",
        "key.pem", "out.crdf", "cluster/.aws/credentials", "corrdiff/__pycache__/a.pyc", "pipelines/id.pem",
        ".ssh/id", "tests/test_docs.py",
    ]  # fmt: skip
    for name in (*code, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")

    def sent(directory: Path) -> list[str]:
        entries = [path for path in directory.iterdir() if not ignored.match_file(str(path.relative_to(tmp_path)))]
        below = [name for path in entries if path.is_dir() for name in sent(path)]
        return [str(path.relative_to(tmp_path)) for path in entries if path.is_file()] + below

    assert not ignored.match_file(".")  # the directory itself
    assert sorted(sent(tmp_path)) == sorted(code)
