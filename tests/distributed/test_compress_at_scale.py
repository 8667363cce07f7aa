"""A dataset through real object storage on a cluster of several machines, of which one dies, as does the driver."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import s3fs
from mlflow import MlflowClient
from PIL import Image
from ray.cluster_utils import Cluster

from pipelines.cli import main
from pipelines.dataset.units import finished_units
from tests.support.results import read_files, read_table
from tests.support.servers import NODE, Fault, S3Server, wait_for

SIDES = 16, 256
FORMATS = ["png", "jpeg", "webp", "tiff", "bmp"]


class Size(NamedTuple):
    machines: int
    pictures: int
    broken: int
    unit: int
    bursts: int


def draw(rng: np.random.Generator) -> Image.Image:
    width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((width, height))
    grain = rng.normal(0, 8, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))


def saved(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :]


def said_to_be(data: bytes, width: int, height: int) -> bytes:
    """A PNG whose header lies."""
    header = data[12:16] + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def halved(kind: str) -> Callable[[Image.Image], bytes]:
    return lambda picture: saved(picture, kind)[: len(saved(picture, kind)) // 2]


WAYS: dict[str, tuple[Callable[[Image.Image], bytes], str]] = {
    "empty.jpg": (lambda _: b"", "the file is empty"),
    "page.jpg": (lambda _: b"<html>404</html>", "not a picture in JPEG"),
    "noise.png": (lambda picture: np.asarray(picture).tobytes()[:500], "not a picture in JPEG"),
    "short.png": (halved("png"), "is truncated"),
    "short.jpg": (halved("jpeg"), "truncated or damaged"),
    "short.webp": (halved("webp"), "the picture is broken"),
    "short.bmp": (halved("bmp"), "is truncated"),
    "flipped.png": (lambda picture: flipped(saved(picture, "png")), "the picture is broken"),
    "huge.png": (lambda picture: said_to_be(saved(picture, "png"), 60_000, 60_000), "more than the limit of"),
    "head.jpg": (lambda picture: saved(picture, "jpeg")[:20], "its header cannot be read"),
}
"""Ten ways in which a file is broken, and what is said of each."""


def write_pictures(root: Path, size: Size) -> dict[str, str]:
    """Pictures in folders; of each broken one, by key, what must be said."""
    rng = np.random.default_rng(0)
    reasons: dict[str, str] = {}
    ways = list(WAYS.items())
    every = size.pictures // size.broken
    for i in range(size.pictures):
        folder = root / f"{i % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        if i % every == every // 2:
            name, (make, said) = ways[(i // every) % len(ways)]
            stem, _, extension = name.partition(".")
            (folder / f"{i:05d}-{stem}.{extension}").write_bytes(make(draw(rng)))
            reasons[f"{i % 7}/{i:05d}-{stem}"] = said
        else:
            kind = FORMATS[i % len(FORMATS)]
            (folder / f"{i:05d}.{kind}").write_bytes(saved(draw(rng), kind))
    return reasons


@contextlib.contextmanager
def several(machines: int) -> Iterator[Cluster]:
    """Raylets of one processor each."""
    made = Cluster(initialize_head=True, head_node_args=NODE)
    try:
        for _ in range(machines - 1):
            made.add_node(**NODE)
        yield made
    finally:
        made.shutdown()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(Size(machines=2, pictures=60, broken=10, unit=6, bursts=4), marks=pytest.mark.slow),
        pytest.param(Size(machines=3, pictures=10_000, broken=100, unit=64, bursts=100), marks=pytest.mark.slow),
    ],
    ids=["60 pictures", "10,000 pictures"],
)
def test_with_a_machine_and_the_driver_killed_and_storage_failing_every_picture_is_there_once_with_the_same_bytes(
    size: Size, ray_cluster: None, s3_storage: S3Server, codec_dir: Path, tmp_path: Path, tracking: str
) -> None:
    place = f"scale-{size.pictures}"
    reasons = write_pictures(tmp_path / "in", size)
    assert len(reasons) == size.broken
    images, calm, out = (f"{s3_storage.uri}/{place}/{name}" for name in ("in", "calm", "out"))
    s3fs.S3FileSystem().put(f"{tmp_path}/in/", images, recursive=True)
    options = ["--codec", str(codec_dir), "--steps", "1", "--quality", "3", "--unit", str(size.unit)]
    assert main(["compress", images, calm, *options]) == 0

    command = [sys.executable, "-m", "pipelines", "compress", images, out, *options]
    mlflow = f"sqlite:///{tmp_path}/disturbed.db"
    faults = [
        Fault("503", rf"{place}/in", times=size.bursts), Fault("reset", rf"{place}/in/", times=size.bursts // 2),
        Fault("503", rf"{place}/out/_units", method="PUT", times=2),
        Fault("reset", rf"{place}/out/part", method="PUT", times=2),
    ]  # fmt: skip
    units = -(-size.pictures // size.unit)
    log = tmp_path / "first.log"
    with several(size.machines) as cluster, s3_storage.proxy.failing(*faults):
        environment = {**os.environ, "RAY_ADDRESS": cluster.address, "MLFLOW_TRACKING_URI": mlflow}
        with log.open("w") as said:
            first = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)

        def units_done(share: float) -> bool:
            assert first.poll() is None, log.read_text()
            return len(finished_units(out)) >= max(1, share * units)

        wait_for("some units", lambda: units_done(0.1), timeout_s=600)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        wait_for("more units", lambda: units_done(0.4), timeout_s=1200)
        first.send_signal(signal.SIGKILL)
        first.wait()
        before = set(finished_units(out))
        second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert 0 < len(before) < units
    assert all(fault.met == fault.times for fault in faults), faults

    files, rows = read_files(out), read_table(out)
    assert files == read_files(calm)
    pd.testing.assert_frame_equal(rows.drop(columns="source"), read_table(calm).drop(columns="source"))
    assert Counter(rows.status) == {"ok": size.pictures - size.broken, "failed": size.broken}
    assert set(rows.key[rows.status == "ok"]) == files.keys()
    failed = dict(zip(rows.key[rows.status == "failed"], rows.error[rows.status == "failed"], strict=True))
    assert failed.keys() == reasons.keys()
    for key, said_of_it in failed.items():
        assert re.search(reasons[key], said_of_it), (key, said_of_it)
    runs = MlflowClient(mlflow).search_runs(["1"])
    assert [run.info.status for run in runs].count("FINISHED") == 1
