"""A Ray cluster that grows and shrinks, without a cloud: real raylets of Ray's fake multi-node provider, and the real
autoscaler and job server."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import ray
import requests
from ray._private.parameter import RayParams
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from tests.support.servers import free_port, listening, wait_for

TOKEN = "planted0token" * 4
HEAD_ID, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def kill_all(is_ours: Callable[[psutil.Process], bool]) -> None:
    """A cluster's processes, and none of another's."""
    ours = [process for process in psutil.process_iter() if is_ours(process)]
    for process in ours:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(ours, timeout=30)


def names(process: psutil.Process, root: Path) -> bool:
    """Whether its command line has a cluster's directory in it."""
    with contextlib.suppress(psutil.Error):
        return str(root) in " ".join(process.cmdline())
    return False


class Provider(FakeMultiNodeProvider):  # type: ignore[misc]
    """Ray's own, but that each machine keeps jobs' code in a directory of its own, as machines do. In a shared one, a
    machine that comes replaces the code, and those that run lose theirs."""

    def _create_node_with_resources_and_labels(self, *what: Any) -> None:
        parameters = functools.partial(RayParams, runtime_env_dir_name=f"runtime_resources-{uuid.uuid4().hex[:8]}")
        with mock.patch.object(ray._private.parameter, "RayParams", parameters):
            super()._create_node_with_resources_and_labels(*what)


class FakeCloud:
    """A head without processors, and kinds of machines that come when something needs them."""

    def __init__(self, root: Path, machines: dict[str, dict[str, Any]], environment: dict[str, str]) -> None:
        """
        Args:
            root: for Ray's session and the configuration; a short path (sockets have names of at most 107 bytes).
            machines: kinds, as in a cluster file: resources, labels, max_workers.
            environment: what all machines have.
        """
        self.root = root
        self.port, dashboard = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.jobs = f"http://127.0.0.1:{dashboard}"
        config = {
            "cluster_name": "fake", "max_workers": 8, "idle_timeout_minutes": 0.5, "upscaling_speed": 10.0,
            "provider": {  # as an external one, for Ray's wheel lacks the defaults of its fake one
                "type": "external", "module": f"{__name__}.Provider", "gcs_address": self.address,
                "head_node_id": HEAD_ID, "launch_multiple": True,
            },
            "available_node_types": {
                HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                **{kind: {"node_config": {}, "min_workers": 0, **what} for kind, what in machines.items()},
            },
            "head_node_type": HEAD_TYPE, "head_setup_commands": [], "worker_setup_commands": [], "setup_commands": [],
            "head_start_ray_commands": [], "worker_start_ray_commands": [], "initialization_commands": [],
            "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False,
            "rsync_exclude": [], "rsync_filter": [], "auth": {},
        }  # fmt: skip
        (root / "cluster.yaml").write_text(json.dumps(config))
        token = root / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        self.client = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        """What a client's environment must have."""
        self.log = root / "head.log"
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=0",
            "--node-ip-address=127.0.0.1", f"--port={self.port}", "--dashboard-host=127.0.0.1",
            f"--dashboard-port={dashboard}", f"--autoscaling-config={root / 'cluster.yaml'}",
            f"--temp-dir={root}", "--labels=corrdiff-gpus=0", f"--object-store-memory={200 << 20}",
            f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
        ]  # fmt: skip
        fake = {
            "RAY_FAKE_CLUSTER": "1", "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID, "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "PATH": PATH,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }  # fmt: skip
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        with self.log.open("w") as log:
            self._head = subprocess.Popen(
                command, env={**inherited, **environment, **self.client, **fake}, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, cwd=root,
            )  # fmt: skip
        try:
            wait_for("the job server", lambda: self._head.poll() is None and listening(dashboard), timeout_s=120)
            wait_for("an answer of the job server", self._answers, timeout_s=60)
        except BaseException:
            self.stop()
            raise

    def _answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return "Ray runtime started" in self.log.read_text() and self.get("/api/version").status_code == 200
        return False

    def get(self, path: str) -> requests.Response:
        """Of the head's dashboard and job server."""
        return requests.get(self.jobs + path, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)

    def stop(self) -> None:
        """All processes of this cluster, and none of another's."""
        kill_all(self._is_ours)
        self._head.kill()
        self._head.wait()

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return names(process, self.root) or self.address in process.environ().get("RAY_ADDRESS", "")
        return False

    def metrics(self) -> list[str]:
        """What Prometheus reads from the machines, line by line."""
        lines: list[str] = []
        for found in self.root.glob("session_latest/prom_metrics_service_discovery.json"):
            for target in [target for entry in json.loads(found.read_text()) for target in entry["targets"]]:
                with contextlib.suppress(requests.RequestException):
                    lines += requests.get(f"http://{target}/metrics", timeout=10).text.splitlines()
        return lines

    def machines(self) -> list[dict[str, Any]]:
        """Those alive, but for the head."""
        answer = self.get("/nodes?view=summary").json()
        nodes = [node["raylet"] for node in answer["data"]["summary"]]
        return [n for n in nodes if n.get("state") == "ALIVE" and not n.get("isHeadNode")]


@contextlib.contextmanager
def fake_cloud(root: Path, machines: dict[str, dict[str, Any]], environment: dict[str, str]) -> Iterator[FakeCloud]:
    cloud = FakeCloud(root, machines, environment)
    try:
        yield cloud
    finally:
        cloud.stop()
