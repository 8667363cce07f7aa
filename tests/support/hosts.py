"""Training across hosts in earnest, on one machine: network namespaces with addresses of their own, a raylet in each.

    head      10.77.5.1   the driver, no processors
    host 1    10.77.5.2   a training worker
    host 2    10.77.5.3   a training worker, whose cable is pulled in the middle

Needs root and network namespaces. As a script: python -m tests.support.hosts
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pipelines.files import storage
from pipelines.train import checkpoints
from tests.support.commands import train_args
from tests.support.drawn import make_picture
from tests.support.fake_cloud import PATH, kill_all, names
from tests.support.servers import free_port, wait_for

BRIDGE, PREFIX = "cdbr0", "10.77.5"
HOSTS = ["cdhost1", "cdhost2"]


class NoNamespacesError(Exception):
    """This machine does not let us make network namespaces."""


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


def check_allowed() -> None:
    """Raises `NoNamespacesError` where this machine has no namespaces for us."""
    if shutil.which("ip") is None:
        raise NoNamespacesError("there is no 'ip' command (Debian: iproute2)")
    tried = subprocess.run(["ip", "netns", "add", "cdtry"], check=False, capture_output=True, text=True)
    if tried.returncode:
        raise NoNamespacesError(tried.stderr.strip())
    ip("netns", "del", "cdtry")


@contextlib.contextmanager
def network() -> Iterator[None]:
    """A bridge, and a namespace on it for each host."""
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{PREFIX}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, host in enumerate(HOSTS, start=2):
            ip("netns", "add", host)
            ip("link", "add", f"{host}v", "type", "veth", "peer", "name", "eth0", "netns", host)
            ip("link", "set", f"{host}v", "master", BRIDGE, "up")
            for words in (["addr", "add", f"{PREFIX}.{number}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                          ["link", "set", "lo", "up"]):  # fmt: skip
                ip("-n", host, *words)
        yield
    finally:
        for words in (["netns", "del", HOSTS[0]], ["netns", "del", HOSTS[1]], ["link", "del", BRIDGE]):
            subprocess.run(["ip", *words], check=False, capture_output=True)


def pull_cable(host: str) -> None:
    ip("link", "set", f"{host}v", "down")


@contextlib.contextmanager
def raylets(root: Path, port: int) -> Iterator[dict[str, str]]:
    """A head on the bridge and a raylet in each namespace; what a driver's environment must have."""
    token = root / "token"
    token.write_text(secrets.token_hex(32))
    client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment = {
        **os.environ, **client, "PATH": PATH, "RAY_USAGE_STATS_ENABLED": "0", "GLOO_SOCKET_IFNAME": "eth0",
        "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "3000", "RAY_health_check_failure_threshold": "3",
    }  # fmt: skip
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--object-store-memory={200 << 20}"]
    head = ["--head", "--num-cpus=0", f"--node-ip-address={PREFIX}.1", f"--port={port}", f"--temp-dir={root}",
            "--include-dashboard=false"]  # fmt: skip
    commands = [[*start, *head]]
    for number, host in enumerate(HOSTS, start=2):
        worker = ["--num-cpus=1", f"--node-ip-address={PREFIX}.{number}", f"--address={PREFIX}.1:{port}"]
        commands.append(["ip", "netns", "exec", host, *start, *worker])
    started = []
    try:
        for i, command in enumerate(commands):
            with (root / f"ray-{i}.log").open("w") as log:
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=root
                    )
                )
            wait_for(f"the raylet of {command[-1]}", functools.partial(_has_started, root / f"ray-{i}.log"))
        yield {**client, "RAY_ADDRESS": f"{PREFIX}.1:{port}"}
    finally:
        kill_all(lambda process: names(process, root))
        for starter in started:
            starter.kill()
            starter.wait()


def _has_started(log: Path) -> bool:
    return "Ray runtime started" in log.read_text()


def run(root: Path) -> str:
    """Train with two workers on two hosts, of which one is cut off; returns what the command printed.

    Raises `NoNamespacesError`.
    """
    check_allowed()
    port = free_port()
    with (
        network(),
        tempfile.TemporaryDirectory(prefix="mh", dir="/tmp", ignore_cleanup_errors=True) as ray_root,
        raylets(Path(ray_root), port) as client,
    ):
        environment = {**os.environ, **client, "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"}
        photographs = root / "photographs"
        photographs.mkdir()
        for i in range(6):
            Image.fromarray(make_picture(160, 192, seed=i)).save(photographs / f"{i}.png")
        corrdiff = [sys.executable, "-m", "pipelines"]
        cut = ["shard", str(photographs), str(root / "shards"), "--crop", "64", "--pictures-per-shard", "2"]
        subprocess.run([*corrdiff, *cut], env=environment, check=True)
        options = train_args(
            str(root / "shards"), str(root), crops_total=960, checkpoint_every=48, workers="1:2", resize_every=5
        )
        log = root / "train.log"
        with log.open("w") as output:
            training = subprocess.Popen(
                [*corrdiff, "train", "phase1", *options], env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            directory = f"{root}/run/phase1/checkpoints"

            def both_at_work() -> bool:
                assert training.poll() is None, log.read_text()
                parts = [n for uri in checkpoints.finished(directory) for n in storage.list_names(uri)]
                return any(name.startswith("part-1-of-2") for name in parts)

            wait_for("a checkpoint of two hosts", both_at_work, timeout_s=240)
            pull_cable(HOSTS[1])
            assert training.wait(400) == 0, log.read_text()
        finally:
            training.kill()
            training.wait()
        return log.read_text()


def check(output: str) -> None:
    assert re.search(r"goes on from [1-9][\d,]* crops", output), output
    assert re.search(r"phase1: 960 of 960 crops", output), output


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="multi-host") as directory:
        try:
            output = run(Path(directory))
        except NoNamespacesError as error:
            sys.exit(f"network namespaces are not allowed here: {error}")
    print(output)
    check(output)
