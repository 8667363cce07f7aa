"""A Grafana dashboard of the runs and the machines, made from the table of gauges.

    python -m pipelines.tracking.dashboard > cluster/monitoring/dashboard.json

A row for training, one for compression: a panel for each gauge. A row for the machines: what Ray itself exports.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pipelines.tracking.gauges import GAUGES

WIDTH, HEIGHT, COLUMNS = 8, 7, 3
"""Of a panel, in the 24 columns of Grafana's grid."""


class Panel(NamedTuple):
    """A chart."""

    title: str
    unit: str
    query: str
    legend: str


MACHINES = (
    Panel("Machines", "short", "count(ray_node_cpu_count)", "alive"),
    Panel("Processors at work", "percent", "ray_node_cpu_utilization", "{{instance}}"),
    Panel("Memory in use", "percentunit", "ray_node_mem_used / ray_node_mem_total", "{{instance}}"),
    Panel("Processors that tasks hold", "short", 'sum by (State) (ray_resources{Name="CPU"})', "{{State}}"),
    Panel("Ray's object store", "bytes", "sum by (Location) (ray_object_store_memory)", "{{Location}}"),
    Panel("Disk in use", "percent", "ray_node_disk_utilization_percentage", "{{instance}}"),
    Panel("GPUs at work", "percent", "ray_node_gpus_utilization", "{{instance}} {{GpuIndex}}"),
)
"""The last has data where there are GPUs."""


def rows() -> dict[str, list[Panel]]:
    """All panels, by the title of their row."""
    made = {
        runs.capitalize(): [
            Panel(g.title, g.unit, f'max by (kind, run) (ray_corrdiff_{g.name}{{run=~"$run"}})', "{{kind}} {{run}}")
            for g in GAUGES.values()
            if g.runs == runs
        ]
        for runs in ("training", "compression")
    }
    return {**made, "Machines": list(MACHINES)}


def dashboard() -> dict[str, Any]:
    """Give the dashboard as Grafana's JSON model."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in rows().items():
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": WIDTH * COLUMNS, "h": 1}})
        for i, panel in enumerate(row):
            place = {"x": WIDTH * (i % COLUMNS), "y": y + 1 + HEIGHT * (i // COLUMNS), "w": WIDTH, "h": HEIGHT}
            panels.append(_chart(panel, place))
        y += 1 + HEIGHT * -(-len(row) // COLUMNS)
    return {
        "uid": "corrdiff", "title": "corrdiff", "schemaVersion": 39, "refresh": "10s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus"},
            {"name": "run", "type": "query", "datasource": {"type": "prometheus", "uid": "${datasource}"},
             "query": 'label_values({__name__=~"ray_corrdiff_.+"}, run)', "refresh": 2, "multi": True,
             "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}},
        ]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, start=1)],
    }  # fmt: skip


def _chart(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "type": "timeseries", "title": panel.title, "gridPos": place, "datasource": source,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [{"refId": "A", "datasource": source, "expr": panel.query, "legendFormat": panel.legend}],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
