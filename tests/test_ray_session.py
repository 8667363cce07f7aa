"""Which machines a pipeline's stages are for, on clusters that differ in what they have and in what they say."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from corrdiff.errors import UsageError
from pipelines import ray_session
from pipelines.ray_session import GPUS_LABEL, STAGE_LABEL


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    def is_of(*machines: tuple[dict[str, float], dict[str, str]]) -> None:
        total: dict[str, float] = {}
        for resources, _ in machines:
            for name, amount in resources.items():
                total[name] = total.get(name, 0) + amount
        monkeypatch.setattr(ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Labels": labels} for _, labels in machines])

    return is_of


HEAD = {"memory": 8e9}, {STAGE_LABEL: "driver", GPUS_LABEL: "16"}
ON_CPU_MACHINES = {STAGE_LABEL: "cpu"}


def test_a_cluster_without_labels_uses_what_is_there(cluster: Any) -> None:
    cluster(({"CPU": 8}, {}), ({"CPU": 8, "GPU": 2}, {}))
    stages = ray_session.pools("auto", None)
    assert stages.device == "cuda"
    assert stages.networks["num_gpus"] == 1
    assert stages.networks["compute"].initial_size == 2
    assert not any("label_selector" in options for options in (stages.networks, stages.coders, stages.tasks))


def test_a_cluster_that_may_get_gpus_counts_on_them_and_keeps_other_stages_off_their_machines(cluster: Any) -> None:
    cluster(HEAD)
    assert ray_session.cluster_gpus() == 16
    for device in ("auto", "cuda"):
        stages = ray_session.pools(device, None)
        assert stages.device == "cuda"
        assert stages.networks["compute"].initial_size == 1
        assert "label_selector" not in stages.networks
        assert stages.coders["label_selector"] == stages.tasks["label_selector"] == ON_CPU_MACHINES


def test_networks_without_gpus_are_on_cpu_machines_too(cluster: Any) -> None:
    cluster(HEAD, ({"CPU": 16}, {STAGE_LABEL: "cpu"}))
    stages = ray_session.pools("cpu", None)
    assert stages.device == "cpu"
    assert {str(options["label_selector"]) for options in stages[1:]} == {str(ON_CPU_MACHINES)}
    assert stages.networks["compute"].initial_size == 16


def test_a_gpu_that_can_never_come_is_refused(cluster: Any) -> None:
    cluster(({"CPU": 8}, {}))
    with pytest.raises(UsageError, match="the cluster has no GPU"):
        ray_session.pools("cuda", None)
    assert ray_session.pools("auto", 3).networks["compute"].initial_size == 3
