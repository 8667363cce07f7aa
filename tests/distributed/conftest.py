"""Real servers and one Ray cluster, shared by the session: object storage, MLflow, Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipelines.cli import main
from pipelines.runtime.session import ray_session
from tests.support.commands import Road, road_commands, upload
from tests.support.drawn import ORIGINALS, SIZES, make_picture
from tests.support.fake_cloud import FakeCloud, fake_cloud
from tests.support.servers import MLFLOW_PASSWORD, MlflowServer, S3Server, s3_server


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


@pytest.fixture(scope="session")
def shards(ray_cluster: None, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Local shards of 64-pixel crops."""
    out = str(tmp_path_factory.mktemp("shards"))
    assert main(["shard", str(photographs), out, "--crop", "64", "--pictures-per-shard", "2"]) == 0
    return out


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


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of four sizes in two folders, and some that are none."""
    root = tmp_path_factory.mktemp("originals")
    for folder in ("a", "b"):
        (root / folder).mkdir()
    for i in range(ORIGINALS):
        kind = ["png", "jpg", "webp"][i % 3]
        Image.fromarray(make_picture(*SIZES[i % 4], seed=i)).save(root / "ab"[i % 2] / f"p{i:02d}.{kind}")
    good = (root / "a" / "p00.png").read_bytes()
    broken = {"empty.png": b"", "text.jpg": b"hello", "short.png": good[: len(good) // 2]}
    for name, data in broken.items():
        (root / "b" / name).write_bytes(data)
    return root


@pytest.fixture(scope="session")
def common(ray_cluster: None, codec_dir: Path) -> list[str]:
    return ["--codec", str(codec_dir), "--steps", "1", "--quality", "3", "--unit", "8"]


@pytest.fixture(scope="session")
def dataset(originals: Path, common: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A finished compression."""
    root = tmp_path_factory.mktemp("dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        assert main(["compress", str(originals), f"{root}/out", *common]) == 0
    return f"{root}/out"
