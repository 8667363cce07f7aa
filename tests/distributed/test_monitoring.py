"""A real Prometheus on real runs: every panel of the dashboard has something to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import submit
from pipelines.tracking.dashboard import rows
from tests.support.commands import Road, road_commands, upload
from tests.support.fake_cloud import FakeCloud
from tests.support.prometheus import prometheus
from tests.support.servers import MlflowServer, S3Server

ON_GPUS_ALONE = {"Share of the GPUs' peak (MFU), on GPUs that are known", "GPUs at work"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_prometheus_answers_every_panel(
    cloud: FakeCloud, s3_storage: S3Server, mlflow_server: MlflowServer, photographs: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, value in cloud.client.items():
        monkeypatch.setenv(name, value)
    road = Road(f"{s3_storage.uri}/monitored-road", mlflow_server.uri)
    upload(photographs, road.root)
    with prometheus(cloud.root / "session_latest" / "prom_metrics_service_discovery.json", tmp_path) as server:
        for command in road_commands(road.root).values():
            assert submit.main(["--address", cloud.jobs, "--", *command]) == 0
        panels = [panel for row in rows().values() for panel in row]
        empty = {panel.title for panel in panels if not server.series(panel.query.replace("$run", ".*"))}
        assert empty == ON_GPUS_ALONE
