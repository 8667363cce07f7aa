"""Everything of Ray's that is not public and that pipelines/runtime/ray_private.py uses, on a real cluster: an upgrade
of Ray has to pass this."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import ray.data
import ray.train
from ray.train.torch import TorchTrainer

from pipelines.runtime import ray_private


def test_the_logs_of_this_node_are_where_rays_own_processes_write_theirs(ray_cluster: None) -> None:
    directory = ray_private.logs_directory()
    assert directory.is_dir()
    assert {"raylet.out", "gcs_server.out"} <= {file.name for file in directory.iterdir()}
    session = Path(ray.get_runtime_context().get_session_name())
    assert session.name in directory.resolve().parts


def test_a_worker_of_a_training_knows_whether_its_machine_is_leaving(ray_cluster: None, tmp_path: Path) -> None:
    found = tmp_path / "found.json"

    def loop() -> None:
        from ray.train import PreemptionInfo
        from ray.train.v2._internal.execution.context import get_train_context

        before = ray_private.is_leaving()
        get_train_context().preemption_context.preemption_info = PreemptionInfo(None, {"node": [0]})
        found.write_text(json.dumps([before, ray_private.is_leaving()]))
        get_train_context().preemption_context.preemption_info = None

    trainer = TorchTrainer(
        loop,
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=ray.train.RunConfig(storage_path=str(tmp_path), name="leaving"),
    )
    trainer.fit()
    assert json.loads(found.read_text()) == [False, True]


def test_rays_scheduler_rests_between_its_steps_where_it_is_told_to(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr(ray_private, "time", SimpleNamespace(sleep=rest))
    context = ray.data.DataContext.get_current().copy()
    context.custom_execution_callback_classes = []
    with ray.data.DataContext.current(context):
        assert len(ray.data.from_items([1, 2, 3]).map(lambda row: row).take_all()) == 3
    assert rests == []
    ray_private.rest_between_steps(context)
    with ray.data.DataContext.current(context):
        assert len(ray.data.from_items([1, 2, 3]).map(lambda row: row).take_all()) == 3
    assert len(rests) > 1 and set(rests) == {ray_private.STEP_S}
