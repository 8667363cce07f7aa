"""Stand-ins for Slurm's programs, for the batch script of cluster/slurm/."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import psutil

from tests.support.fake_cloud import kill_all

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

# Writes down what it is told, and knows the machines of the job.
SCONTROL = """
echo "scontrol $*" >> "$TOLD"
[[ $1 == show ]] && echo $SLURM_JOB_NODELIST | tr ',' '\\n'
exit 0
"""


class Slurm:
    """A job of several machines, and what it tells Slurm."""

    def __init__(self, root: Path, machines: list[str], gpus: int, ray: str, corrdiff: str) -> None:
        """
        Args:
            root: for the programs.
            machines: their names.
            gpus: of each of them.
            ray, corrdiff: bash, for the programs of these names.
        """
        self.told = root / "told"
        self.told.touch()
        self.programs = root / "bin"
        self.programs.mkdir()
        scripts = {"srun": SRUN, "scontrol": SCONTROL, "ray": ray, "corrdiff": corrdiff}
        for name, script in scripts.items():
            (self.programs / name).write_text(f"#!/usr/bin/env bash\n{script}")
            (self.programs / name).chmod(0o755)
        self.environment = {
            "PATH": f"{self.programs}:{os.environ['PATH']}", "TOLD": str(self.told),
            "SLURM_JOB_NODELIST": ",".join(machines), "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NUM_NODES": str(len(machines)), "SLURM_CPUS_ON_NODE": "2", "SLURM_GPUS_ON_NODE": str(gpus),
        }  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(JOB), *arguments], env=os.environ | self.environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def end(self, job: subprocess.Popen[str]) -> None:
        """As Slurm ends a job: with all that it has started, whatever session that is in."""
        while any(map(self._is_ours, psutil.process_iter())):  # what is killed may have started another
            kill_all(self._is_ours)
        job.wait()

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TOLD") == str(self.told)
        return False

    def lines(self) -> list[str]:
        return self.told.read_text().splitlines()
