"""Preflight on a cluster of which one machine has other packages, a wrong secret and little shared memory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.support.servers import NODE, S3_SECRET, S3Server, wait_for

SMALL = "mount -t tmpfs -o size=64m tmpfs /dev/shm"


@contextlib.contextmanager
def odd_machine(address: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """A raylet with an environment of its own, in a mount namespace with 64 MB of shared memory."""
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={address}", "--num-cpus=1",
             "--object-store-memory=78643200"]  # fmt: skip
    with log.open("w") as said:
        started = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f'{SMALL} && exec "$@"', "sh", *start],
            env={**os.environ, **environment}, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(30)


@pytest.mark.slow
def test_what_is_wrong_with_one_machine_is_found(s3_storage: S3Server, tmp_path: Path) -> None:
    allowed = subprocess.run(["unshare", "--mount", "sh", "-c", SMALL], capture_output=True, text=True, check=False)
    if allowed.returncode:
        pytest.skip(f"mount namespaces are not allowed here: {allowed.stderr.strip()}")
    other = tmp_path / "packages" / "deepspeed-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.0.1\n")
    odd = {"PYTHONPATH": str(other.parent), "AWS_SECRET_ACCESS_KEY": "wrongsecret1"}
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        with odd_machine(cluster.address, odd, tmp_path / "odd.log"):

            def both() -> bool:
                return sum(node["Alive"] for node in cluster.global_state.node_table()) == 2

            wait_for("the odd machine", both, timeout_s=90)
            command = [sys.executable, "-m", "cluster.preflight", "--storage", f"{s3_storage.uri}/preflight"]
            mlflow = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "RAY_ADDRESS": cluster.address}
            done = subprocess.run(
                command, env={**os.environ, **mlflow}, capture_output=True, text=True, check=False, timeout=300
            )
    finally:
        cluster.shutdown()
    said = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"deepspeed │ [\d.]+ on [^;]+; 0\.0\.1 on ", said), said
    assert re.search(r"storage │ [^│]*(Signature|Permission|Forbidden|Access)[^│]*│ FAILED", said), said
    assert re.search(r"shared memory │ [^│]*0\.06 GiB[^│]*--shm-size │ FAILED", said), said
    assert "not fit: deepspeed, storage, MLflow, shared memory" in said
    assert S3_SECRET not in done.stdout + done.stderr
    assert "wrongsecret1" not in done.stdout + done.stderr
