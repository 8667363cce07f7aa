"""A real Prometheus with the project's configuration, on loopback."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.support.servers import free_port, listening, wait_for

MONITORING = Path(__file__).parents[2] / "cluster" / "monitoring"


class Prometheus:
    """What it has seen since it was started."""

    def __init__(self, port: int) -> None:
        self.url, self._started = f"http://127.0.0.1:{port}/api/v1", time.time()

    def series(self, query: str) -> list[dict[str, Any]]:
        """What a query gives over the whole time."""
        span = {"query": query, "start": str(self._started), "end": str(time.time()), "step": "1"}
        answer = requests.get(f"{self.url}/query_range", params=span, timeout=30).json()
        assert answer["status"] == "success", answer
        return list(answer["data"]["result"])


@contextlib.contextmanager
def prometheus(machines: Path, root: Path) -> Iterator[Prometheus]:
    """One that reads the machines of Ray's own list. Skips the test where there is none (Debian: prometheus)."""
    if shutil.which("prometheus") is None:
        pytest.skip("there is no prometheus (Debian: prometheus)")
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    config["scrape_configs"][0]["file_sd_configs"][0] = {"files": [str(machines)], "refresh_interval": "1s"}
    config["global"]["scrape_interval"] = "1s"
    (root / "prometheus.yaml").write_text(yaml.safe_dump(config))
    shutil.copyfile(MONITORING / "alerts.yaml", root / "alerts.yaml")
    port = free_port()
    process = subprocess.Popen(
        ["prometheus", f"--config.file={root / 'prometheus.yaml'}", f"--storage.tsdb.path={root / 'data'}",
         f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for("Prometheus", lambda: process.poll() is None and listening(port))
        yield Prometheus(port)
    finally:
        process.kill()
        process.wait()
