"""The batch script for Slurm, with stand-ins for Slurm and Ray that write down what they are told."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from pipelines.runtime.resources import GPUS_LABEL
from tests.support.servers import wait_for
from tests.support.slurm import Slurm

# Writes down what it is told, and that it was told to end; a machine takes a moment to drain.
RAY = r"""
echo "ray $*" >> "$TOLD"
[[ $1 == start ]] || exit 0
case "$*" in *--head*) name=head ;; *) name=worker ;; esac
trap 'sleep 0.3; echo "$name drained" >> "$TOLD"; exit 1' TERM
while true; do sleep 0.05; done
"""


def slurm(root: Path, corrdiff: str) -> Slurm:
    return Slurm(root, ["localhost", "other1", "other2"], 8, RAY, corrdiff)


@pytest.fixture
def running(tmp_path: Path) -> Slurm:
    return slurm(tmp_path, 'echo "corrdiff $RAY_ADDRESS $#: $*" >> "$TOLD"; while true; do sleep 0.05; done')


def test_ray_is_on_every_machine_and_the_command_on_the_cluster(running: Slurm) -> None:
    job = running.start("train", "all", "--name", "two words")
    try:
        wait_for("the command", lambda: any(line.startswith("corrdiff") for line in running.lines()))
        wait_for("the others", lambda: sum("--address=" in line for line in running.lines()) == 2)
        said, number = running.told.read_text(), os.getpid()
        port = 20000 + number % 10000
        assert re.search(rf"ray start --block --num-cpus=2 --head --node-ip-address=127\.0\.0\.1 --port={port}", said)
        assert f"--labels={GPUS_LABEL}=24" in said
        assert said.count(f"ray start --block --num-cpus=2 --address=127.0.0.1:{port}") == 2
        assert f"corrdiff 127.0.0.1:{port} 4: train all --name two words" in said
    finally:
        running.end(job)


def test_at_a_signal_all_machines_drain_the_head_last_and_the_job_queues_again(running: Slurm) -> None:
    job = running.start("train", "all")
    try:
        wait_for("the command", lambda: any(line.startswith("corrdiff") for line in running.lines()))
        wait_for("the others", lambda: sum("--address=" in line for line in running.lines()) == 2)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(30) == 0
        assert running.lines()[-4:] == [
            "worker drained",
            "worker drained",
            "head drained",
            f"scontrol requeue {os.getpid()}",
        ]
    finally:
        running.end(job)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_jobs_exit_code_is_the_commands(code: int, tmp_path: Path) -> None:
    quick = slurm(tmp_path, f"exit {code}")
    job = quick.start("preflight")
    try:
        assert job.wait(30) == code
        assert not any("requeue" in line for line in quick.lines())
    finally:
        quick.end(job)
