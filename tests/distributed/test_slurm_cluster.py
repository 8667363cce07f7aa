"""The batch script for Slurm with a real Ray on one machine; Slurm itself is a stand-in."""

from __future__ import annotations

import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from pipelines.train import checkpoints
from tests.support.commands import train_args
from tests.support.servers import wait_for
from tests.support.slurm import Slurm

PYTHON = shlex.quote(sys.executable)


@pytest.mark.slow
def test_a_training_whose_time_is_up_queues_again_and_goes_on_from_its_last_step(
    shards: str, tmp_path: Path, tracking: str
) -> None:
    ray, corrdiff = f'exec {PYTHON} -m ray.scripts.scripts "$@"', f'exec {PYTHON} -m pipelines "$@"'
    slurm = Slurm(tmp_path, ["localhost"], 0, ray, corrdiff)
    slurm.environment |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "40", "RAY_USAGE_STATS_ENABLED": "0"}
    length = {"crops_total": 240, "batch": 8, "checkpoint_every": 80, "lr": 1e-4}
    command = ["train", "phase1", *train_args(shards, str(tmp_path), **length)]
    job = slurm.start(*command)
    try:
        directory = f"{tmp_path}/run/phase1/checkpoints"
        wait_for("a checkpoint", lambda: checkpoints.latest(directory) is not None, timeout_s=240)
        job.send_signal(signal.SIGUSR1)
        said, _ = job.communicate(timeout=120)
        assert job.returncode == 0, said
        assert any(line.startswith("scontrol requeue") for line in slurm.lines())
        (saved,) = re.findall(r"about to go away; checkpoint at ([\d,]+) crops", said)
    finally:
        slurm.end(job)
    job = slurm.start(*command)
    try:
        said, _ = job.communicate(timeout=300)
        assert job.returncode == 0, said
        assert f"goes on from {saved} crops" in said
        assert "240 of 240 crops" in said
    finally:
        slurm.end(job)
