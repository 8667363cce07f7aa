"""What real runs log is what tests/surface.txt says."""

from __future__ import annotations

import re
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.tracking.lineage import KIND
from pipelines.tracking.tracker import EXPERIMENT
from tests.support.commands import Road
from tests.support.surface import sections

FROZEN = sections((Path(__file__).parents[1] / "surface.txt").read_text())
METRICS = {
    "phase1": "metrics in MLflow of a training", "phase2": "metrics in MLflow of a training",
    "compress": "metrics in MLflow of a compression", "evaluate": "metrics in MLflow of an evaluation",
}  # fmt: skip


def test_every_metric_and_tag_of_a_run_is_in_surface_txt(road: Road) -> None:
    runs = runs_of(road)
    assert {run.data.tags[KIND] for run in runs} == set(METRICS)
    for run in runs:
        names = set(run.data.metrics)
        if run.data.tags[KIND] == "evaluate":
            names = {re.sub(r"/[^/]+$", "/CURVE", name) for name in names}
        assert names <= set(FROZEN[METRICS[run.data.tags[KIND]]])
        ours = {tag for tag in run.data.tags if tag.startswith("corrdiff.")}
        assert ours <= set(FROZEN["tags in MLflow"])


def runs_of(road: Road) -> list[Run]:
    client = MlflowClient(road.mlflow)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return [r for r in runs if road.root in r.data.tags.get("corrdiff.run", "") + r.data.params.get("out", "")]
