"""How a pipeline's stages are dealt to clusters that differ in what they have and in what they say."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from corrdiff.errors import UsageError
from pipelines.runtime import resources
from pipelines.runtime.resources import GPUS_LABEL


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    def is_of(*machines: tuple[dict[str, float], dict[str, str]]) -> None:
        total: dict[str, float] = {}
        for amounts, _ in machines:
            for name, amount in amounts.items():
                total[name] = total.get(name, 0) + amount
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Labels": labels} for _, labels in machines])

    return is_of


HEAD = {"memory": 8e9}, {GPUS_LABEL: "16"}


def test_a_cluster_that_says_nothing_has_what_is_there(cluster: Any) -> None:
    cluster(({"CPU": 8}, {}), ({"CPU": 8, "GPU": 2}, {}))
    assert not resources.may_grow()
    stages = resources.pools("auto", None)
    assert stages.device == "cuda"
    assert stages.networks["num_gpus"] == 1
    assert stages.networks["compute"].initial_size == 2


def test_a_cluster_that_may_get_gpus_counts_on_them(cluster: Any) -> None:
    cluster(HEAD)
    assert resources.cluster_gpus() == 16
    for device in ("auto", "cuda"):
        stages = resources.pools(device, None)
        assert stages.device == "cuda"
        assert stages.networks["compute"].initial_size == 1
        assert stages.networks["num_cpus"] == 0
        assert stages.coders["num_cpus"] == stages.tasks["num_cpus"] == 1


def test_where_machines_may_come_the_other_stages_may_grow_too(cluster: Any) -> None:
    cluster(HEAD, ({"CPU": 16}, {}))
    growing = resources.pools("cpu", None)
    cluster(({"CPU": 16}, {}))
    fixed = resources.pools("cpu", None)
    assert growing.device == fixed.device == "cpu"
    assert growing.networks["compute"].initial_size == fixed.networks["compute"].initial_size == 16
    assert growing.coders["compute"].max_size > fixed.coders["compute"].max_size == 4
    assert growing.tasks["concurrency"] > fixed.tasks["concurrency"] == 4


def test_a_gpu_that_can_never_come_is_refused(cluster: Any) -> None:
    cluster(({"CPU": 8}, {}))
    with pytest.raises(UsageError, match="the cluster has no GPU"):
        resources.pools("cuda", None)
    assert resources.pools("auto", 3).networks["compute"].initial_size == 3
