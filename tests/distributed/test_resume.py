"""Nothing is lost when a worker or the driver dies, and nobody takes over another's run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

from pipelines.cli import main
from pipelines.files import storage
from pipelines.train import checkpoints
from tests.support.commands import train_apart, train_args
from tests.support.results import recorded
from tests.support.servers import wait_for

LENGTH = {"crops_total": 104, "checkpoint_every": 24}


@pytest.fixture(scope="module")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The codec of a run that nothing happened to."""
    root = tmp_path_factory.mktemp("undisturbed")
    train_apart(shards, root, **LENGTH)
    return f"{root}/run/phase1/codec"


def test_a_killed_worker_is_replaced_and_the_run_ends_as_if_nothing_had_happened(
    shards: str, undisturbed: str, tmp_path: Path, tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = f"{tmp_path}/run/phase1/checkpoints"
    killed: list[int] = []

    def kill_after_the_first_checkpoint() -> None:
        wait_for("a checkpoint", lambda: checkpoints.latest(directory) is not None, timeout_s=240)
        workers = train_workers()
        killed.extend(p.pid for p in workers)
        for process in workers:
            process.kill()

    killer = threading.Thread(target=kill_after_the_first_checkpoint)
    killer.start()
    assert main(["train", "phase1", *train_args(shards, str(tmp_path), **LENGTH)]) == 0
    killer.join()
    assert killed
    assert re.search(r"phase1 goes on from [1-9]\d* crops", capsys.readouterr().out)
    assert_same_weights(undisturbed, f"{tmp_path}/run/phase1/codec")


@pytest.mark.slow
def test_after_the_driver_was_killed_the_same_command_goes_on(
    shards: str, undisturbed: str, tmp_path: Path, tracking: str
) -> None:
    command = [sys.executable, "-m", "pipelines", "train", "phase1", *train_args(shards, str(tmp_path), **LENGTH)]
    directory = f"{tmp_path}/run/phase1/checkpoints"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for("a checkpoint", lambda: checkpoints.latest(directory) is not None, timeout_s=240)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(2)  # its Ray processes notice and end
    assert not storage.exists(f"{tmp_path}/run/phase1/codec/config.json")
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "phase1 goes on from" in second.stdout
    assert_same_weights(undisturbed, f"{tmp_path}/run/phase1/codec")


def test_a_different_run_of_the_same_name_is_refused(
    shards: str, undisturbed: str, tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(undisturbed).parents[2]
    assert main(["train", "phase1", *train_args(shards, str(root), **LENGTH, lr=0.5)]) == 2
    said = capsys.readouterr().err
    assert "lr: 0.001 there, 0.5 now" in said
    assert "choose another --name" in said


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(
    shards: str, tmp_path: Path, tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = train_args(shards, str(tmp_path), lr=1e25, checkpoint_every=8)
    assert main(["train", "phase1", *options]) == 1
    said = capsys.readouterr().err
    assert re.search(r"failed: phase1: the loss is not finite at step \d+ \(\d+ crops, epoch \d\): loss nan", said)
    assert "bpp" in said
    assert "Traceback" not in said


CHANGING = {"crops_total": 480, "batch": 12, "checkpoint_every": 120, "log_every": 1, "keep_checkpoints": 9}
NEXT_STEPS = 20


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_losses_go_on_as_they_were_when_2_workers_become_1_and_then_3(stage: int, shards: str, tmp_path: Path) -> None:
    """Each change against going on from the same checkpoint without it, over the next 20 steps."""
    options = {**CHANGING, "zero_stage": stage}
    two, one, three = (tmp_path / name for name in ("two", "one", "three"))
    two.mkdir()
    losses = recorded(train_apart(shards, two, **options, workers=2))
    for before, after, workers, checkpoints_kept in ((two, one, 1, 1), (one, three, 3, 2)):
        shutil.copytree(before / "run", after / "run", ignore=shutil.ignore_patterns("codec", "mlflow.json"))
        first, *later = sorted((after / "run" / "phase1" / "checkpoints").iterdir())[checkpoints_kept - 1 :]
        for checkpoint in later:
            shutil.rmtree(checkpoint)
        changed = recorded(train_apart(shards, after, **options, workers=workers))
        assert changed.keys() == {seen for seen in losses if seen > int(first.name[-12:])}
        assert len(changed) >= NEXT_STEPS
        for seen in sorted(changed)[:NEXT_STEPS]:
            assert changed[seen] == pytest.approx(losses[seen], rel=1e-3), (workers, seen)
        losses |= changed


def train_workers() -> list[psutil.Process]:
    """Ray Train's worker processes of this session's cluster, and of no other on this machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it is just ending
            if "TrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def assert_same_weights(a: str, b: str) -> None:
    """Equal to the bit."""
    first, second = (safetensors.torch.load_file(f"{codec}/weights.safetensors") for codec in (a, b))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
