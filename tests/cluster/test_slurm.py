"""The batch script for Slurm, with stand-ins for Slurm and Ray that write down what they are told."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from pipelines.runtime.resources import GPUS_LABEL
from tests.support.fake_cloud import kill_all, names
from tests.support.servers import wait_for

JOB = Path(__file__).parents[2] / "cluster" / "slurm" / "job.sh"

# As Slurm's: runs its words on each machine, and hands a signal on to the shell that it started there.
SRUN = r"""
for word in "$@"; do
    case "$word" in
        --nodes=*) nodes=${word#*=} ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
tasks=
for ((i = 0; i < nodes; i++)); do setsid "$@" & tasks="$tasks $!"; done
trap 'kill -USR1 $tasks' USR1
for task in $tasks; do while kill -0 $task 2> /dev/null; do wait $task; done; done
"""

# Writes down what it is told, and that it was told to end; a machine takes a moment to drain.
RAY = r"""
echo "ray $*" >> "$TOLD"
[[ $1 == start ]] || exit 0
case "$*" in *--head*) name=head ;; *) name=worker ;; esac
trap 'sleep 0.3; echo "$name drained" >> "$TOLD"; exit 1' TERM
while true; do sleep 0.05; done
"""

SCONTROL = """
echo "scontrol $*" >> "$TOLD"
[[ $1 == show ]] && printf 'localhost\nother1\nother2\n'
exit 0
"""


class Slurm:
    """A job of three machines, and what it is told."""

    def __init__(self, root: Path, command: str) -> None:
        self.told = root / "told"
        self.told.touch()
        self.programs = root / "bin"
        self.programs.mkdir()
        scripts = {"srun": SRUN, "ray": RAY, "scontrol": SCONTROL, "corrdiff": command}
        for name, script in scripts.items():
            (self.programs / name).write_text(f"#!/usr/bin/env bash\n{script}")
            (self.programs / name).chmod(0o755)
        self.environment = {
            "PATH": f"{self.programs}:{os.environ['PATH']}", "TOLD": str(self.told),
            "SLURM_JOB_NODELIST": "localhost,other[1-2]",
            "SLURM_JOB_ID": "12345", "SLURM_JOB_NUM_NODES": "3", "SLURM_CPUS_ON_NODE": "16", "SLURM_GPUS_ON_NODE": "8",
        }  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(JOB), *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def end(self, job: subprocess.Popen[str]) -> None:
        """As Slurm ends a job: with all that it has started, whatever session that is in."""
        kill_all(lambda process: process.pid == job.pid or names(process, self.programs))
        job.wait()

    def lines(self) -> list[str]:
        return self.told.read_text().splitlines()


@pytest.fixture
def running(tmp_path: Path) -> Slurm:
    return Slurm(tmp_path, 'echo "corrdiff $RAY_ADDRESS $#: $*" >> "$TOLD"; while true; do sleep 0.05; done')


def test_ray_is_on_every_machine_and_the_command_on_the_cluster(running: Slurm) -> None:
    job = running.start("train", "all", "--name", "two words")
    try:
        wait_for("the command", lambda: any(line.startswith("corrdiff") for line in running.lines()))
        wait_for("the others", lambda: sum("--address=" in line for line in running.lines()) == 2)
        said = running.told.read_text()
        assert re.search(r"ray start --block --num-cpus=16 --head --node-ip-address=127\.0\.0\.1 --port=22345", said)
        assert f"--labels={GPUS_LABEL}=24" in said
        assert said.count("ray start --block --num-cpus=16 --address=127.0.0.1:22345") == 2
        assert "corrdiff 127.0.0.1:22345 4: train all --name two words" in said
    finally:
        running.end(job)


def test_at_a_signal_all_machines_drain_the_head_last_and_the_job_queues_again(running: Slurm) -> None:
    job = running.start("train", "all")
    try:
        wait_for("the command", lambda: any(line.startswith("corrdiff") for line in running.lines()))
        wait_for("the others", lambda: sum("--address=" in line for line in running.lines()) == 2)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(30) == 0
        assert running.lines()[-4:] == ["worker drained", "worker drained", "head drained", "scontrol requeue 12345"]
    finally:
        running.end(job)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_jobs_exit_code_is_the_commands(code: int, tmp_path: Path) -> None:
    slurm = Slurm(tmp_path, f"exit {code}")
    job = slurm.start("preflight")
    try:
        assert job.wait(30) == code
        assert not any("requeue" in line for line in slurm.lines())
    finally:
        slurm.end(job)
