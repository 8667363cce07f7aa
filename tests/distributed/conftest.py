"""Real servers and one Ray cluster, shared by the session: object storage, MLflow, Ray."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from pipelines.cli import main
from pipelines.files import storage
from pipelines.runtime.session import ray_session
from pipelines.tracking.tracker import EXPERIMENT
from tests.support.fake_cloud import FakeCloud, fake_cloud
from tests.support.servers import MlflowServer, S3Server, s3_server

MLFLOW_PASSWORD = "plantedpassword77"

NODE = {"num_cpus": 1, "object_store_memory": 200 << 20}
"""A machine of a cluster of several raylets."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.distributed)


@pytest.fixture(scope="session")
def s3_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server with an empty bucket, and the proxy before it; credentials are in the environment."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def s3(s3_storage: S3Server) -> str:
    """The bucket's s3:// URI."""
    return s3_storage.uri


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


@pytest.fixture(scope="module")
def cloud(s3_storage: S3Server, mlflow_server: MlflowServer) -> Iterator[FakeCloud]:
    """A cluster that starts as a head without processors and grows as jobs need it; its machines know the servers."""
    environment = s3_storage.environment | {
        "MLFLOW_TRACKING_URI": mlflow_server.uri, "MLFLOW_TRACKING_USERNAME": "tester",
        "MLFLOW_TRACKING_PASSWORD": MLFLOW_PASSWORD,
    }  # fmt: skip
    machines = {"worker": {"resources": {"CPU": 2}, "max_workers": 2}}
    with (
        tempfile.TemporaryDirectory(prefix="cloud", dir="/tmp", ignore_cleanup_errors=True) as root,
        fake_cloud(Path(root), machines, environment) as cloud,
    ):
        assert cloud.machines() == []
        yield cloud


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
    assert main(["shard", str(photographs), out, "--crop", "64", "--pictures-per-shard", "2"]) == 0
    return out


def train_args(shards: str, storage: str, **options: object) -> list[str]:
    """A short training command's options."""
    defaults = {"crops_total": 48, "batch": 8, "crop": 64, "checkpoint_every": 24, "name": "run"}
    merged = {**defaults, **options}
    flags = [part for k, v in merged.items() for part in (f"--{k.replace('_', '-')}", str(v))]
    return ["--shards", shards, "--storage", storage, *flags]


def train_apart(shards: str, root: Path, **options: object) -> str:
    """Train phase 1 under a directory of its own, for tests to compare with; its MLflow store."""
    tracking = f"sqlite:///{root}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        assert main(["train", "phase1", *train_args(shards, str(root), **options)]) == 0
    return tracking


def recorded(tracking: str, metric: str = "loss") -> dict[int, float]:
    """A metric of each step in MLflow's only run, by crops seen; of a step that was done twice, the last."""
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, metric)
    return {m.step: m.value for m in sorted(history, key=lambda m: (m.step, m.timestamp))}


def read_table(out: str) -> pd.DataFrame:
    """Of a compressed dataset, by key."""
    frames = [
        pd.read_parquet(io.BytesIO(storage.read_bytes(f"{out}/{n}")))
        for n in storage.list_names(out)
        if n.endswith(".parquet")
    ]
    return pd.concat(frames, ignore_index=True).sort_values("key", ignore_index=True)


def read_files(out: str) -> dict[str, bytes]:
    """Of all parts; a key that comes twice is an error."""
    found: dict[str, bytes] = {}
    for name in storage.list_names(out):
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(f"{out}/{name}"))) as tar:
                for info in tar:
                    if info.name.endswith(".crdf"):
                        member = tar.extractfile(info)
                        assert member is not None
                        assert info.name not in found
                        found[info.name] = member.read()
    return {name.removesuffix(".crdf"): data for name, data in found.items()}


class Road(NamedTuple):
    root: str
    mlflow: str

    @property
    def phase1(self) -> str:
        return f"{self.root}/runs/run/phase1/codec"

    @property
    def phase2(self) -> str:
        return f"{self.root}/runs/run/phase2/codec"


def road_commands(root: str) -> dict[str, list[str]]:
    """The whole road, by the commands that a person types."""
    cut = ["--crop", "64", "--pictures-per-shard", "3", "--val-fraction", "0.3"]
    options = train_args(f"{root}/shards", f"{root}/runs", workers=2, zero_stage=2)
    flags = ["--codec", f"{root}/runs/run/phase2/codec", "--unit", "3", "--steps", "2", "--quality", "5"]
    return {
        "shard": ["shard", f"{root}/photographs", f"{root}/shards", *cut],
        "train": ["train", "all", *options, "--phase2-crops-total", "24"],
        "compress": ["compress", f"{root}/photographs", f"{root}/compressed", *flags],
    }


def upload(photographs: Path, root: str) -> None:
    """Six good pictures and two broken ones."""
    for i in range(6):
        storage.write_bytes(f"{root}/photographs/sub/picture_{i}.png", (photographs / f"picture_{i}.png").read_bytes())
    storage.write_bytes(f"{root}/photographs/broken.jpg", b"\xff\xd8\xff\xe0 this is no picture")
    storage.write_bytes(f"{root}/photographs/truncated.png", (photographs / "picture_0.png").read_bytes()[:2000])


@pytest.fixture(scope="session")
def road(ray_cluster: None, s3: str, mlflow_server: MlflowServer, photographs: Path) -> Road:
    """Everything on S3."""
    road = Road(f"{s3}/road", mlflow_server.uri)
    upload(photographs, road.root)
    back = ["decompress", f"{road.root}/compressed", f"{road.root}/back", "--codec", road.phase2]
    few = ["--qualities", "4", "--fidelities", "1", "--steps", "2", "--anchors", "jpeg", "--limit", "3"]
    report = ["evaluate", f"{road.root}/photographs", "--out", f"{road.root}/report", "--codec", road.phase2, *few]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        for command in [*road_commands(road.root).values(), back, report]:
            assert main(command) == 0
    return road
