"""What preflight says of what it found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from cluster import probe
from cluster.preflight import GIB, Check, Preflight, judge
from cluster.probe import REDUCED_BYTES, Facts, Reduced, Transfer, multiplied

VERSIONS = {
    "python": "3.11.9", "ray": "2.60.0", "torch": "2.14.1", "deepspeed": "0.19.8", "mlflow": "3.17.0",
    "s3fs": "2026.1.0", "cuda": "12.8",
}  # fmt: skip


def node(name: str, **changes: Any) -> Facts:
    facts = Facts(
        name, VERSIONS, cpus=8, gpus_of_ray=1, gpus=[("L40S", 48 * GIB)], memory=64 * GIB, object_store=16 * GIB,
        shared_memory=32 * GIB, spill_disk=400 * GIB, skew_s=0.001, storage=Transfer(0.5, 0.25), mlflow="",
    )  # fmt: skip
    return facts._replace(**changes)


ALL = Preflight(storage="s3://bucket/runs", cpus=24, gpus=3)
GOOD = Reduced("nccl", 3, 0.01)


def failed(checks: Sequence[Check]) -> dict[str, str]:
    return {check.name: check.found for check in checks if check.ok is False}


def test_a_good_cluster_is_good() -> None:
    checks = judge(ALL, [node("a"), node("b"), node("c")], GOOD)
    assert [check.ok for check in checks] == [True] * len(checks)
    found = {check.name: check.found for check in checks}
    assert found["nodes"] == "3: 24 CPUs, 192 GiB"
    assert found["GPUs"] == "3: L40S, 48 GiB"
    assert found["torch"] == "2.14.1"
    assert found["all-reduce"] == f"nccl, 3 ranks: {2 * 2 / 3 * REDUCED_BYTES / 0.01 / 1e9:.2f} GB/s"
    assert found["storage"] == "a node writes 67 MB/s and reads 134 MB/s at least"


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("torch", {"versions": {k: v for k, v in VERSIONS.items() if k != "torch"}}, "2.14.1 on a, b; missing on c"),
        ("deepspeed", {"versions": VERSIONS | {"deepspeed": "0.18.0"}}, "0.19.8 on a, b; 0.18.0 on c"),
        ("mlflow", {"versions": {k: v for k, v in VERSIONS.items() if k != "mlflow"}}, "3.17.0 on a, b; missing on c"),
        ("cuda", {"versions": VERSIONS | {"cuda": "none"}}, "12.8 on a, b; none on c"),
        ("GPUs", {"gpus": []}, "c: Ray counts 1, torch sees 0"),
        ("GPUs", {"broken_gpus": ("RuntimeError: The NVIDIA driver on your system is too old",)},
         "c: RuntimeError: The NVIDIA driver on your system is too old"),
        ("GPUs", {"gpus": [], "gpus_of_ray": 0}, "2: L40S, 48 GiB; 3 are wanted"),
        ("storage", {"storage": Transfer(error="PermissionError: Access Denied")}, "c: PermissionError: Access Denied"),
        ("storage", {"storage": Transfer(unseen="a")}, "c does not see what a wrote: this is not one place"),
        ("MLflow", {"mlflow": "http://h does not answer"}, "c: http://h does not answer"),
        ("MLflow", {"mlflow": None}, "c: MLFLOW_TRACKING_URI is not set"),
        ("clocks", {"skew_s": -9.04}, "c is -9.0 s off; is its time synchronised?"),
        ("shared memory", {"shared_memory": GIB},
         "c: 1.00 GiB, and an object store of 16.00 GiB; in a container, --shm-size"),
        ("shared memory", {"shared_memory": GIB // 16, "object_store": GIB // 20},
         "c: 0.06 GiB, and an object store of 0.05 GiB; in a container, --shm-size"),
        ("spill disk", {"spill_disk": GIB}, "c: 1.0 GiB free, less than 5 GiB"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one_node_is_said_of_that_node(name: str, changes: dict[str, Any], said: str) -> None:
    checks = judge(ALL, [node("a"), node("b"), node("c", **changes)], GOOD)
    assert failed(checks) == {name: said}


def test_a_device_that_multiplies_rightly_is_well_and_one_that_cannot_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MULTIPLIED", 64)  # a processor takes a minute for what a GPU does at once
    assert multiplied("cpu") == ""
    assert multiplied("nonsense").startswith("RuntimeError: ")
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: a)
    assert multiplied("cpu") == "a wrong product in float32"


def test_a_reduction_that_fails_is_said() -> None:
    checks = judge(ALL, [node(n) for n in "abc"], Reduced("nccl", 3, error="rank 2: RuntimeError: timed out"))
    assert failed(checks) == {"all-reduce": "nccl, 3 ranks: rank 2: RuntimeError: timed out"}


def test_too_few_processors_are_said() -> None:
    checks = judge(ALL, [node("a"), node("b", gpus_of_ray=2, gpus=[("L40S", 48 * GIB)] * 2)], GOOD)
    assert failed(checks) == {"nodes": "2: 16 CPUs, 128 GiB; 24 CPUs are wanted"}


def test_of_one_machine_nothing_is_asked_that_one_machine_does_not_need() -> None:
    alone = node("a", gpus_of_ray=0, gpus=[], storage=None, mlflow=None)
    checks = judge(Preflight(), [alone], Reduced("gloo", 1))
    assert {check.name for check in checks if check.ok is None} == {"GPUs", "all-reduce", "storage", "MLflow"}
    assert failed(checks) == {}


def test_many_wrong_nodes_are_not_all_named() -> None:
    checks = judge(Preflight(), [node(f"n{i}", spill_disk=0) for i in range(9)], GOOD)
    assert failed(checks)["spill disk"].count("GiB free") == 4
    assert "and 5 more" in failed(checks)["spill disk"]
