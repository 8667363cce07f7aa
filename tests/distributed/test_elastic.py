"""Machines that come and go while a run trains, on a cluster of several raylets."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from ray.cluster_utils import Cluster

from pipelines.dataset.units import finished_units
from pipelines.files import storage
from pipelines.train import checkpoints
from tests.support.commands import train_apart, train_args
from tests.support.drawn import make_picture
from tests.support.metadata_server import MetadataServer
from tests.support.results import read_files, read_table, recorded
from tests.support.servers import NODE, free_port, wait_for

# A low learning rate, so that the order of sums on another number of workers does not grow over 60 steps.
LENGTH = {"crops_total": 480, "batch": 8, "checkpoint_every": 48, "log_every": 1, "lr": 1e-4}
GRACE_S = 120
"""Of a pod, as terminationGracePeriodSeconds has it."""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with one CPU, to which a test may add machines."""
    made = Cluster(initialize_head=True, head_node_args=NODE)
    yield made
    made.shutdown()


class Command:
    """A training command in a process of its own, and what it says."""

    def __init__(self, cluster: Cluster, options: list[str]) -> None:
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "train", "phase1", *options],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.said = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line

    def wait_to_say(self, pattern: str, timeout_s: float = 240) -> None:
        wait_for(f"'{pattern}' in {self.said}", lambda: self._ended_or(pattern), timeout_s)
        assert re.search(pattern, self.said), self.said

    def _ended_or(self, pattern: str) -> bool:
        return bool(re.search(pattern, self.said)) or self.process.poll() is not None

    def wait(self) -> None:
        assert self.process.wait(600) == 0, self.said
        self._reader.join()


@pytest.fixture(scope="module")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    root = tmp_path_factory.mktemp("undisturbed")
    return recorded(train_apart(shards, root, **LENGTH))


@pytest.mark.slow
def test_a_run_grows_when_a_machine_comes_and_shrinks_when_it_is_drained(
    shards: str, cluster: Cluster, undisturbed: dict[int, float], tmp_path: Path, tracking: str
) -> None:
    options = train_args(shards, str(tmp_path), **LENGTH, workers="1:2", resize_every=5, max_failures=0)
    command = Command(cluster, options)
    directory = f"{tmp_path}/run/phase1/checkpoints"
    wait_for("a checkpoint", lambda: checkpoints.latest(directory) is not None, timeout_s=240)
    spot = cluster.add_node(**NODE)
    command.wait_to_say(r"goes on from \d+ crops")
    wait_for("two workers", lambda: bool(parts_of(directory, "part-1-of-2")), timeout_s=240)
    with watched(cluster, spot.node_id) as service:
        at = service.give_notice(60)
        command.wait_to_say("a machine is about to go away; checkpoint at")
        assert draining(cluster) == {spot.node_id: pytest.approx(at, abs=2)}
    time.sleep(1)
    cluster.remove_node(spot, allow_graceful=False)
    command.wait()
    assert len(re.findall(r"goes on from", command.said)) >= 2
    saved = int(re.findall(r"about to go away; checkpoint at ([\d,]+) crops", command.said)[0].replace(",", ""))
    assert f"goes on from {saved:,} crops" in command.said  # nothing after the notice's checkpoint was needed again
    found = recorded(tracking)
    assert found.keys() == undisturbed.keys()
    for seen, loss in undisturbed.items():
        assert found[seen] == pytest.approx(loss, rel=1e-3), seen


@pytest.mark.slow
def test_a_pod_that_kubernetes_takes_away_has_drained_inside_its_grace(
    shards: str, cluster: Cluster, undisturbed: dict[int, float], tmp_path: Path, tracking: str
) -> None:
    with pod(cluster) as worker:
        options = train_args(shards, str(tmp_path), **LENGTH, workers="1:2", resize_every=5, max_failures=0)
        command = Command(cluster, options)
        directory = f"{tmp_path}/run/phase1/checkpoints"
        wait_for("two workers", lambda: bool(parts_of(directory, "part-1-of-2")), timeout_s=240)
        worker.terminate()
        command.wait_to_say("a machine is about to go away; checkpoint at", timeout_s=GRACE_S)
        assert worker.wait(GRACE_S) >= 0  # it has ended by itself: nobody has killed it
    command.wait()
    saved = int(re.findall(r"about to go away; checkpoint at ([\d,]+) crops", command.said)[0].replace(",", ""))
    assert f"goes on from {saved:,} crops" in command.said
    found = recorded(tracking)
    assert found.keys() == undisturbed.keys()
    for seen, loss in undisturbed.items():
        assert found[seen] == pytest.approx(loss, rel=1e-3), seen


@pytest.mark.slow
def test_a_machine_that_vanishes_costs_the_steps_since_the_last_checkpoint(
    shards: str, cluster: Cluster, undisturbed: dict[int, float], tmp_path: Path, tracking: str
) -> None:
    spot = cluster.add_node(**NODE)
    options = train_args(shards, str(tmp_path), **LENGTH, workers="1:2", resize_every=5)
    command = Command(cluster, options)
    directory = f"{tmp_path}/run/phase1/checkpoints"
    wait_for("two workers", lambda: bool(parts_of(directory, "part-1-of-2")), timeout_s=240)
    cluster.remove_node(spot, allow_graceful=False)
    command.wait()
    assert re.search(r"goes on from [1-9]\d* crops", command.said)
    found = recorded(tracking)
    assert found.keys() == undisturbed.keys()
    for seen, loss in undisturbed.items():
        assert found[seen] == pytest.approx(loss, rel=1e-3), seen


@pytest.mark.slow
def test_a_compression_ends_complete_when_a_machine_is_taken_away_at_short_notice(
    cluster: Cluster, codec_dir: Path, tmp_path: Path, tracking: str
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(120):
        Image.fromarray(make_picture(192, 256, seed=i)).save(pictures / f"{i:03d}.png")
    spot = cluster.add_node(**NODE)
    out = str(tmp_path / "compressed")
    options = ["--codec", str(codec_dir), "--unit", "4", "--steps", "8"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    log = tmp_path / "log"
    with log.open("w") as said, watched(cluster, spot.node_id) as service:
        job = subprocess.Popen(
            [sys.executable, "-m", "pipelines", "compress", str(pictures), out, *options], env=environment, stdout=said,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait_for("some units", lambda: len(finished_units(out)) >= 3, timeout_s=240)
        service.give_notice(8)
        wait_for("the end of the machine", lambda: not alive(cluster, spot.node_id), timeout_s=60)
        assert job.poll() is None, log.read_text()
        assert job.wait(400) == 0, log.read_text()
    rows = read_table(out)
    assert sorted(rows.key) == [f"{i:03d}" for i in range(120)]
    assert set(rows.status) == {"ok"}
    assert read_files(out).keys() == set(rows.key)


@contextlib.contextmanager
def pod(cluster: Cluster) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as KubeRay starts it in a pod: Ray in a shell, with what the manifests have in its environment."""
    ray = f"{sys.executable} -m ray.scripts.scripts start --block --address={cluster.address} --num-cpus=1"
    ports = f"--dashboard-agent-listen-port={free_port()} --object-store-memory={NODE['object_store_memory']}"
    environment = {**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(GRACE_S - 20)}
    shell = ["bash", "-c", "--", f"ulimit -n 4096; {ray} {ports}"]
    process = subprocess.Popen(shell, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for("the worker", lambda: sum(node["Alive"] for node in cluster.global_state.node_table()) == 2)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def watched(cluster: Cluster, node_id: str) -> Iterator[MetadataServer]:
    """The watcher, as the cluster file starts it on a machine, and that machine's metadata service."""
    with MetadataServer() as service:
        command = ["-m", "cluster.preemption", "--address", cluster.address, "--node-id", node_id, "--every", "0.2"]
        watcher = subprocess.Popen(
            [sys.executable, *command, "--metadata", service.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield service
            said, _ = watcher.communicate(timeout=60)
            assert watcher.returncode == 0, said
            assert f"Ray node {node_id} drains until" in said
        finally:
            watcher.kill()
            watcher.wait()


def draining(cluster: Cluster) -> dict[str, float]:
    """Nodes that are drained, and until when, in seconds since the epoch."""
    found = cluster.global_state.get_draining_nodes()
    return {node_id: deadline_ms / 1000 for node_id, deadline_ms in found.items()}


def alive(cluster: Cluster, node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in cluster.global_state.node_table())


def parts_of(directory: str, prefix: str) -> list[str]:
    return [
        name for uri in checkpoints.finished(directory) for name in storage.list_names(uri) if name.startswith(prefix)
    ]
