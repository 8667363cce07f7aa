"""What the manifests for Kubernetes start, started as it stands there; only addresses are ours."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
import yaml
from PIL import Image

from pipelines.cli import main
from pipelines.files import storage
from pipelines.shards.format import read_manifest
from tests.support.drawn import make_picture
from tests.support.results import read_table
from tests.support.servers import free_port, wait_for

MANIFESTS = Path(__file__).parents[2] / "cluster" / "kubernetes"


def test_mlflow_answers_to_the_name_that_the_pods_call_it(tmp_path: Path) -> None:
    documents = yaml.safe_load_all((MANIFESTS / "base" / "mlflow.yaml").read_text())
    (deployment,) = (document for document in documents if document["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    port = free_port()
    ours = {"0.0.0.0": "127.0.0.1", "--port=5000": f"--port={port}", "/mlflow/": f"{tmp_path}/"}
    words = [*container["command"], *container["args"]]
    for theirs, other in ours.items():
        words = [word.replace(theirs, other) for word in words]
    environment = {variable["name"]: variable["value"] for variable in container["env"]} | {"HOME": str(tmp_path)}
    program = Path(sys.executable).parent / words[0]
    server = subprocess.Popen([program, *words[1:]], env=os.environ | environment, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"

        def status(path: str, host: str) -> int:
            try:
                return requests.get(url + path, headers={"Host": host}, timeout=10).status_code
            except requests.ConnectionError:
                return 0

        wait_for("the server", lambda: status("/health", "mlflow:5000") == 200, timeout_s=120)
        experiments = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
        assert status(experiments, "mlflow:5000") == 200
        assert status(experiments, "localhost:5000") == 200  # by kubectl port-forward
        assert status(experiments, "somebody.example") == 403
        assert (tmp_path / "mlflow.db").exists()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def command(name: str, bucket: str) -> list[str]:
    """What a job runs, with another bucket."""
    job = yaml.safe_load((MANIFESTS / "jobs" / f"{name}.yaml").read_text())
    program, *arguments = shlex.split(job["spec"]["entrypoint"].replace("s3://BUCKET", bucket))
    assert program == "corrdiff"
    return arguments


@pytest.mark.slow
def test_the_jobs_cut_and_compress_with_their_own_arguments(
    ray_cluster: None, s3: str, codec_dir: Path, tracking: str, capfd: pytest.CaptureFixture[str]
) -> None:
    bucket = f"{s3}/jobs"
    for i in range(2):
        png = io.BytesIO()
        Image.fromarray(make_picture(320, 320, seed=i)).save(png, "PNG")
        storage.write_bytes(f"{bucket}/photos/{i}.png", png.getvalue())
    for file in codec_dir.iterdir():
        storage.write_bytes(f"{bucket}/runs/base-1/phase2/codec/{file.name}", file.read_bytes())
    assert main(command("shard", bucket)) == 0, capfd.readouterr()
    assert read_manifest(f"{bucket}/shards").count + read_manifest(f"{bucket}/shards/val").count == 2
    assert main(command("compress", bucket)) == 0, capfd.readouterr()
    assert set(read_table(f"{bucket}/compressed").status) == {"ok"}
    assert main(command("train", bucket)) == 2  # there is no GPU here
    assert "GPU" in capfd.readouterr().err
