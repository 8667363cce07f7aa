"""Run a corrdiff command as a job on a Ray cluster: its packages go along, its log comes back, its exit code is ours.

    these packages' code  -->  job server (HTTP)  -->  python -m pipelines COMMAND, on the cluster

Only the files of the three packages are sent, whatever lies beside or among them: no data, no caches, no credentials. A
job's credentials are those of the machines that it runs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fnmatch
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from corrdiff.command_line import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, run_command
from corrdiff.errors import JobError, UsageError
from corrdiff.uris import has_secret

PACKAGES = "corrdiff", "pipelines", "cluster"
KINDS = "*.py", "py.typed", "*.html", "*.json", "*.safetensors", "*.csv", "*.md", "*.yaml", "*.sh"
"""Names of the files that belong to the packages; all but *.py stand in pyproject.toml as package data as well.
tests/test_wheel.py compares what a job is sent, what a wheel holds and what is in the repository."""
DASHBOARD = "http://127.0.0.1:8265"
RECONNECT_S = 2.0
LOST_S = 120.0
"""A job server that does not answer for so long is given up; the job may go on."""

_SECRET = re.compile(
    r"secret|token(?!iz)|passw|passphrase|credential|cookie|[a-z](pass|key)$|(^|_)(pass|pat|pwd|keys?)(_|$)|(^|_)auth$",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Submit:
    """Run a corrdiff command as a job on a Ray cluster and follow its log; ends with the job's exit code.

    The command comes after --. Ctrl-C leaves the job alone and says how to come back to it or stop it.

    Example: corrdiff submit -- train all --shards s3://bucket/shards --storage s3://bucket/runs --name base-1
    Example: corrdiff submit --address http://head:8265 --no-wait -- compress s3://bucket/in s3://bucket/out --codec ...
    """

    address: str | None = None
    """The cluster's job server; RAY_API_SERVER_ADDRESS or http://127.0.0.1:8265 where it is not given (where
    'ray dashboard ray_cluster.yaml' opens it)."""
    wait: bool = True
    """--no-wait only submits, and prints the job's id."""
    env: tuple[str, ...] = ()
    """NAME=VALUE for the job's environment, say MLFLOW_TRACKING_URI=http://10.0.0.5:5000; never a secret."""
    job_id: str | None = None
    """A name for the job, which no other may have; Ray finds one where it is not given."""


def submit(options: Submit, command: Sequence[str]) -> int:
    """Submit a command as a job and, unless told not to, follow it; returns the exit code.

    Raises:
        UsageError: there is no cluster, the command is missing or would show a secret.
        JobError: the connection was lost for long.
    """
    if not command:
        raise UsageError("what is to be run? corrdiff submit -- train all --shards ...")
    environment = _environment(options.env)
    if any(has_secret(part) for part in [*command, *environment.values()]):
        raise UsageError(
            "a URI with a password, a token or a signature would be seen by everyone; let the cluster's machines "
            "have it"
        )
    address = options.address or os.environ.get("RAY_API_SERVER_ADDRESS") or DASHBOARD
    address = address if "://" in address else f"http://{address}"
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray's client would take another one from here
    job = options.job_id or f"corrdiff-{command[0]}-{uuid.uuid4().hex[:8]}"
    to_come_back = f"  ray job logs --address {address} --follow {job}\n  ray job stop --address {address} {job}"
    try:
        client = _send(address, job, command, environment)
        print(f"job {job} at {address}", flush=True)
        if not options.wait:
            print(to_come_back)
            return EXIT_OK
        return follow(client, job)
    except KeyboardInterrupt:
        print(f"\nthe job goes on; to come back to it, or to stop it:\n{to_come_back}", flush=True)
        return EXIT_INTERRUPTED


def _send(address: str, job: str, command: Sequence[str], environment: dict[str, str]) -> Any:
    """Submit a job; it is accepted when this returns its server's client."""
    from ray.job_submission import JobSubmissionClient

    with _clear_errors(address), packaged() as directory:
        client = JobSubmissionClient(address)
        client.submit_job(
            entrypoint=shlex.join(["python", "-m", "pipelines", *command]), submission_id=job,
            runtime_env={"working_dir": str(directory), "env_vars": environment},
            metadata={"corrdiff": " ".join(command[:2])},
        )  # fmt: skip
    return client


def exit_code(info: Any) -> int:
    """Say on the terminal how a job ended, where its log does not; returns its exit code."""
    status = str(info.status)
    if status == "SUCCEEDED":
        return EXIT_OK
    if status == "STOPPED":
        print("the job was stopped")
        return EXIT_FAILED
    if info.driver_exit_code is None and info.message:  # it did not come to run
        print(f"failed: {str(info.message).strip().splitlines()[-1]}", file=sys.stderr)
    return int(info.driver_exit_code or EXIT_FAILED)


def follow(client: Any, job: str) -> int:
    """Print the job's log as it grows, until the job has ended; a connection that breaks is made again.

    Returns the job's exit code. Raises `JobError` where the job server was away for long.
    """
    import aiohttp

    log = Log()
    while True:
        try:
            asyncio.run(log.follow(client, job))
            info = client.get_job_info(job)
            if info.status.is_terminal():
                asyncio.run(log.follow(client, job))
                return exit_code(info)
            log.heard()
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            if time.monotonic() - log.heard_at > LOST_S:
                raise JobError(f"the job server was not there for {LOST_S:.0f} s; job {job} may go on") from error
        time.sleep(RECONNECT_S)


class Log:
    """What has been shown of a job's log, which its server sends from the start whenever it is asked."""

    def __init__(self) -> None:
        self.shown = 0
        self.heard()

    def heard(self) -> None:
        self.heard_at = time.monotonic()

    async def follow(self, client: Any, job: str) -> None:
        passed = 0
        async for text in client.tail_job_logs(job):
            self.heard()
            print(text[max(0, self.shown - passed) :], end="", flush=True)
            passed += len(text)
            self.shown = max(self.shown, passed)


@contextlib.contextmanager
def packaged() -> Iterator[Path]:
    """Make a directory that holds the files of the packages and nothing else, for the length of a block."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as directory:
        for name in package_files(root):
            (Path(directory) / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, Path(directory) / name)
        yield Path(directory)


def package_files(root: Path) -> list[Path]:
    """List the files of the packages under a directory, as paths from there."""
    found = (file.relative_to(root) for package in PACKAGES for file in (root / package).rglob("*"))
    return sorted(
        path
        for path in found
        if any(fnmatch.fnmatchcase(path.name, kind) for kind in KINDS)
        and not any(part.startswith((".", "__pycache__")) for part in path.parts)
    )


def _environment(given: Sequence[str]) -> dict[str, str]:
    found = {"PYTHONUNBUFFERED": "1"}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--env wants NAME=VALUE, not '{name}'")
        if _SECRET.search(name):
            raise UsageError(
                f"--env {name}: a job's environment is seen by everyone who sees the dashboard; give secrets to the "
                "machines (an instance profile, or the environment that 'ray start' has)"
            )
        found[name] = value
    return found


@contextlib.contextmanager
def _clear_errors(address: str) -> Iterator[None]:
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise UsageError(
            f"the cluster at {address} wants its token: put it into ~/.ray/auth_token ('ray get-auth-token' on the "
            "head prints it) and set RAY_AUTH_MODE=token"
        ) from None
    except ConnectionError as error:
        raise UsageError(
            f"no Ray job server at {address} ({str(error).splitlines()[0][:160]}); 'ray dashboard ray_cluster.yaml' "
            "opens the way to a cluster's"
        ) from None
    except (RuntimeError, OSError, ValueError) as error:  # what the job server or the way to it refused
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"the job was not accepted at {address}: {reason[-1][:300]}") from None


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    ours, command = arguments[:split], arguments[split + 1 :]
    return run_command(Submit, "corrdiff submit", ours, lambda options: submit(options, command))


if __name__ == "__main__":
    sys.exit(main())
