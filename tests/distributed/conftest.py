"""Real servers and one Ray cluster, shared by the session: object storage, MLflow, Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.cli import main
from pipelines.ray_session import ray_session

S3_KEY, S3_SECRET = "corrdifftest", "notasecret12"
BUCKET = "bucket"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.distributed)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(what: str, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
        time.sleep(0.1)


def listening(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 server on loopback with an empty bucket; its s3:// URI. Credentials are in the environment."""
    root = tmp_path_factory.mktemp("s3")
    (root / BUCKET).mkdir()
    port = free_port()
    rclone = Path(sys.executable).parent / "rclone"
    server = subprocess.Popen(
        [rclone, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{S3_KEY},{S3_SECRET}", str(root)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ |= {
        "AWS_ACCESS_KEY_ID": S3_KEY,
        "AWS_SECRET_ACCESS_KEY": S3_SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        wait_for("the S3 server", lambda: listening(port))
        yield f"s3://{BUCKET}"
    finally:
        server.kill()
        server.wait()


class MlflowServer:
    """A real MLflow server process on loopback, which a test may stop and start."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                Path(sys.executable).parent / "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                "--backend-store-uri", f"sqlite:///{self.root / 'mlflow.db'}",
                "--artifacts-destination", str(self.root / "artifacts"), "--workers", "1",
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wait_for("the MLflow server", self._healthy, timeout_s=120)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 9)
            self._process.wait()
            self._process = None

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ray_cluster(s3: str) -> Iterator[None]:
    """One local Ray cluster for all tests; its workers know the S3 server from their environment."""
    with ray_session():
        yield


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sqlite MLflow store of the test's own."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small pictures with edges, gradients and texture."""
    root = tmp_path_factory.mktemp("photographs")
    for i in range(6):
        Image.fromarray(make_picture(160, 192, seed=i)).save(root / f"picture_{i}.png")
    return root


def make_picture(height: int, width: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 64.0
    out = np.zeros((height, width, 3))
    for c in range(3):
        a, b, phase = rng.uniform(0.5, 3, 3)
        out[..., c] = 120 + 70 * np.sin(a * x + phase) * np.cos(b * y) + rng.normal(0, 6, (height, width))
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    out[top : top + height // 3, left : left + width // 3] = rng.uniform(0, 255, 3)
    clipped: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = np.clip(out, 0, 255).astype(np.uint8)
    return clipped


@pytest.fixture(scope="session")
def shards(ray_cluster: None, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Local shards of 64-pixel crops."""
    out = str(tmp_path_factory.mktemp("shards"))
    assert main(["shard", str(photographs), out, "--crop", "64", "--images-per-shard", "2"]) == 0
    return out


def train_args(shards: str, storage: str, **options: object) -> list[str]:
    """A short training command's options."""
    defaults = {"images_total": 48, "batch": 8, "crop": 64, "checkpoint_every": 24, "name": "run"}
    merged = {**defaults, **options}
    flags = [part for k, v in merged.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    return ["--shards", shards, "--storage", storage, *flags]
