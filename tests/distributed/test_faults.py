"""What goes wrong between storage and a trainer, on a real S3 server behind a proxy that breaks things: crops lost and
crops repeated are 0 in every row."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from corrdiff.errors import JobError
from pipelines.cli import main
from pipelines.files import storage
from pipelines.shards.format import Manifest, read_manifest
from pipelines.train import checkpoints, epoch_order, ingest
from pipelines.train.crops import Crops
from pipelines.train.epoch_order import Cursor
from tests.distributed.test_resume import assert_same_weights
from tests.support.commands import train_args
from tests.support.servers import Fault, S3Server

BATCH = 8


@pytest.fixture(scope="module")
def remote(s3_storage: S3Server, shards: str) -> str:
    """The shards in the bucket."""
    uri = f"{s3_storage.uri}/faults/shards"
    for file in Path(shards).iterdir():
        if file.is_file():
            storage.write_bytes(f"{uri}/{file.name}", file.read_bytes())
    return uri


def keys_of(uri: str, manifest: Manifest, epochs: int = 2) -> Counter[str]:
    """Every crop that two workers get in some epochs."""
    steps = epochs * epoch_order.steps_per_epoch(manifest, BATCH)
    seen: Counter[str] = Counter()
    for rank in range(2):
        for batch in ingest.CropReader(Crops(uri, manifest), 0, BATCH, rank, 2).batches(Cursor(0, 0), steps):
            seen.update(key for key in batch.keys if key)
    return seen


def exactly(manifest: Manifest, times: int = 2) -> Counter[str]:
    return Counter({shard.key(i): times for shard in manifest.shards for i in range(shard.count)})


@pytest.mark.parametrize(
    ("faults", "requests_met"),
    [
        ([Fault("503", r"shard-0000\d\.tar", times=12)], 12),
        ([Fault("503", r"\.index", times=5)], 5),
        ([Fault("reset", r"shard-00001\.tar", times=4)], 4),
        ([Fault("slow", r"shard-0000\d\.tar", times=3)], 3),
        ([Fault("reset", r"shard-00002\.tar", times=2), Fault("503", r"shard", times=4), Fault("slow", "tar")], 7),
    ],
    ids=["burst of 503", "503 for an index", "reset in mid-shard", "slow reads", "all at once"],
)
def test_a_passing_fault_loses_no_crop_and_repeats_none(
    faults: list[Fault], requests_met: int, remote: str, s3_storage: S3Server
) -> None:
    manifest = read_manifest(remote)
    with s3_storage.proxy.failing(*faults):
        assert keys_of(remote, manifest) == exactly(manifest)
    assert sum(fault.met for fault in faults) == requests_met  # it did happen


@pytest.mark.parametrize(
    ("truncated", "said"),
    [(True, "is truncated: it ends at byte"), (False, "is missing")],
    ids=["truncated shard", "missing shard"],
)
def test_a_lasting_fault_names_the_shard(truncated: bool, said: str, remote: str) -> None:
    manifest = read_manifest(remote)
    uri = f"{remote}/{manifest.shards[1].name}"
    kept = storage.read_bytes(uri)
    storage.write_bytes(uri, kept[: len(kept) // 2]) if truncated else storage.remove_file(uri)
    try:
        with pytest.raises(JobError, match=rf"{manifest.shards[1].name} {said}") as caught:
            keys_of(remote, manifest)
    finally:
        storage.write_bytes(uri, kept)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_a_checkpoint_upload_broken_in_the_middle_is_repeated_and_the_run_ends_as_if_nothing_had_happened(
    remote: str, s3_storage: S3Server, shards: str, tmp_path: Path, tracking: str
) -> None:
    assert main(["train", "phase1", *train_args(shards, str(tmp_path))]) == 0
    storage_uri = f"{s3_storage.uri}/faults/runs"
    fault = Fault("reset", r"checkpoints/.*safetensors", method="PUT", times=2)
    with s3_storage.proxy.failing(fault):
        assert main(["train", "phase1", *train_args(remote, storage_uri)]) == 0
    assert fault.met == 2
    (tmp_path / "codec").mkdir()
    for name in ("weights.safetensors", "tables.safetensors"):
        data = storage.read_bytes(f"{storage_uri}/run/phase1/codec/{name}")
        (tmp_path / "codec" / name).write_bytes(data)
    assert_same_weights(f"{tmp_path}/run/phase1/codec", f"{tmp_path}/codec")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """disk(bytes) is a real disk of that size, which a second call makes larger."""
    root = tmp_path / "disk"
    root.mkdir()

    def make(size: int) -> Path:
        again = ["-o", f"size={size},remount"] if root.is_mount() else ["-o", f"size={size}", "-t", "tmpfs", "tmpfs"]
        done = subprocess.run(["mount", *again, str(root)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this user may not mount a disk: {done.stderr.strip()}")
        return root

    yield make
    subprocess.run(["umount", "--lazy", str(root)], check=False)


@pytest.mark.slow
def test_a_disk_that_is_full_at_a_checkpoint_ends_the_run_with_the_one_before_whole(
    shards: str, disk: Callable[[int], Path], tmp_path: Path, tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "roomy").mkdir()
    assert main(["train", "phase1", *train_args(shards, str(tmp_path / "roomy"))]) == 0
    undisturbed = tmp_path / "roomy" / "run" / "phase1"
    checkpoint = sum(f.stat().st_size for f in next((undisturbed / "checkpoints").iterdir()).iterdir())
    root = disk(checkpoint * 3 // 2)
    options = train_args(shards, str(root), max_failures=0)
    assert main(["train", "phase1", *options]) == 1
    said = capsys.readouterr().err
    assert "crops-000000000048 could not be written" in said
    assert "No space left on device" in said
    assert "Traceback" not in said
    directory = str(root / "run" / "phase1" / "checkpoints")
    (whole,) = checkpoints.finished(directory)
    assert checkpoints.load(whole).progress.crops_seen == 24
    disk(checkpoint * 5)
    assert main(["train", "phase1", *options]) == 0
    assert "phase1 goes on from 24 crops" in capsys.readouterr().out
    assert_same_weights(str(undisturbed / "codec"), str(root / "run" / "phase1" / "codec"))


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_said_and_the_one_before_serves(
    shards: str, tmp_path: Path, tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = train_args(shards, str(tmp_path))
    assert main(["train", "phase1", *options]) == 0
    run = tmp_path / "run" / "phase1"
    newest, before = checkpoints.finished(str(run / "checkpoints"))
    part = Path(newest) / "part-0-of-1.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    weights = (run / "codec" / "weights.safetensors").read_bytes()
    (run / "codec" / "config.json").unlink()
    capsys.readouterr()
    assert main(["train", "phase1", *options]) == 0
    said = capsys.readouterr().out
    assert "part-0-of-1.safetensors is damaged; going on from the one before" in said
    assert f"phase1 goes on from {int(before[-12:])} crops" in said
    assert (run / "codec" / "weights.safetensors").read_bytes() == weights


def test_no_checkpoint_that_can_be_read_is_an_error(shards: str, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoints" / "crops-000000000024"
    directory.mkdir(parents=True)
    (directory / "COMPLETE.json").write_text("{")
    with pytest.raises(JobError, match=r"no checkpoint can be read: checkpoint .* COMPLETE\.json cannot be read"):
        checkpoints.load_newest(str(tmp_path / "checkpoints"))
    assert np.array_equal(checkpoints.finished(str(tmp_path / "nowhere")), [])
