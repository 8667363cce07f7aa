"""Prometheus's configuration and alerts, by its own tool where it is installed (Debian: prometheus)."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines.tracking.gauges import GAUGES

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "cluster" / "monitoring"
RULES_TESTS = Path(__file__).with_name("alerts.yaml")


def promtool(*words: str) -> str:
    """What promtool says where it is content."""
    if shutil.which("promtool") is None:
        pytest.skip("there is no promtool (Debian: prometheus)")
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, str]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    return list(group["rules"])


def test_prometheus_takes_the_configuration_and_its_rules() -> None:
    assert "4 rules found" in promtool("check", "config", str(MONITORING / "prometheus.yaml"))


def test_alerts_fire_when_they_should_and_not_before() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(RULES_TESTS))


def test_every_alert_is_tested() -> None:
    tested = set(re.findall(r"alertname: (\w+)", RULES_TESTS.read_text()))
    assert tested == {rule["alert"] for rule in rules()}


def test_alerts_are_about_gauges_that_there_are() -> None:
    for rule in rules():
        named = set(re.findall(r"ray_corrdiff_(\w+)", rule["expr"]))
        assert named
        assert named <= GAUGES.keys()


def test_under_kubernetes_the_same_port_is_read() -> None:
    monitor = yaml.safe_load((ROOT / "cluster" / "kubernetes" / "pod-monitor.yaml").read_text())
    cluster = yaml.safe_load((ROOT / "cluster" / "kubernetes" / "base" / "ray-cluster.yaml").read_text())
    assert monitor["spec"]["selector"]["matchLabels"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    (container,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert endpoint["port"] in {port["name"] for port in container["ports"]}
