"""What the commands for clusters use of Ray and Ray does not promise, on a real Ray: an upgrade has to pass this."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ray

from cluster.ray_private import spill_directory


def test_where_ray_spills_is_its_sessions_directory_unless_it_is_told_another(ray_cluster: None) -> None:
    found: Path = ray.get(ray.remote(spill_directory).options(num_cpus=0).remote())
    assert found.is_dir()
    assert (found / "logs").is_dir()


def test_where_ray_was_told_to_spill_is_found(tmp_path: Path) -> None:
    code = (
        "import ray; from cluster.ray_private import spill_directory; ray.init(num_cpus=1, include_dashboard=False);"
        "print(ray.get(ray.remote(spill_directory).remote()))"
    )
    told = {"RAY_object_spilling_directory": str(tmp_path), "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **told},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
