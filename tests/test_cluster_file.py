"""ray_cluster.yaml against Ray's own schema, and against what the documentation and the code say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.ray_session import GPUS_LABEL, STAGE_LABEL

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "ray_cluster.yaml").read_text()


def prepared(text: str) -> dict[str, Any]:
    filled: dict[str, Any] = prepare_config(yaml.safe_load(text))
    validate_config(filled)
    return filled


def test_the_file_is_what_ray_accepts() -> None:
    config = prepared(TEXT)
    assert set(config["available_node_types"]) == {"head", "cpu", "gpu", "gpu_spot"}
    assert config["head_node_type"] == "head"
    workers = [kind for name, kind in config["available_node_types"].items() if name != "head"]
    assert {kind["min_workers"] for kind in workers} == {0}
    assert sum(kind["max_workers"] for kind in workers) == config["max_workers"]
    assert config["idle_timeout_minutes"] == 5
    spot = {n for n, k in config["available_node_types"].items() if "InstanceMarketOptions" in k["node_config"]}
    assert spot == {"gpu_spot"}
    assert {kind["node_config"]["MetadataOptions"]["HttpTokens"] for kind in workers} == {"required"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("idle_timeout_minutes:", "idle_timeout_minuets:"), ("max_workers: 24", "max_workers: many"),
        ("    max_workers: 8", "    max_worker: 8"), ("head_node_type: head", "head_node_type: haed"),
        ("    resources: {CPU: 16}", "    resources: {CPU: sixteen}"),
    ],
)  # fmt: skip
def test_a_typo_is_found(right: str, wrong: str) -> None:
    assert right in TEXT
    with pytest.raises((ValidationError, ValueError, KeyError)):
        prepared(TEXT.replace(right, wrong, 1))


def test_nothing_is_open_but_ssh_to_the_owner() -> None:
    rules = yaml.safe_load(TEXT)["provider"]["security_group"]["IpPermissions"]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in rules] == [(22, 22)]
    (owner,) = [r["CidrIp"] for rule in rules for r in rule["IpRanges"]]
    assert owner.endswith("/32")
    assert "--dashboard-host=127.0.0.1" in TEXT


def test_there_is_no_secret_in_it_and_tokens_are_wanted() -> None:
    assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret|password|BEGIN [A-Z ]*PRIVATE KEY", TEXT, re.IGNORECASE)
    assert "RAY_AUTH_MODE=token" in TEXT


def test_the_labels_are_those_that_the_pipelines_use() -> None:
    kinds = yaml.safe_load(TEXT)["available_node_types"]
    assert {name: kind["labels"][STAGE_LABEL] for name, kind in kinds.items()} == {
        "head": "driver", "cpu": "cpu", "gpu": "gpu", "gpu_spot": "gpu",
    }  # fmt: skip
    gpus = sum(kind["resources"].get("GPU", 0) * kind["max_workers"] for kind in kinds.values())
    assert int(kinds["head"]["labels"][GPUS_LABEL]) == gpus


def test_the_documentation_says_the_same_numbers() -> None:
    kinds = yaml.safe_load(TEXT)["available_node_types"]
    table = (ROOT / "docs" / "cluster.md").read_text()
    for name, kind in kinds.items():
        if name != "head":
            assert re.search(rf"\| `{name}` \| [^|]* \| {kind['max_workers']} \|", table), name
    for needed in re.findall(r"--workers (?:\d+:)?(\d+)", table):
        gpus = sum(kind["resources"].get("GPU", 0) * kind["max_workers"] for kind in kinds.values())
        assert int(needed) <= gpus


def test_the_versions_are_those_of_the_constraints() -> None:
    assert "-c ~/corrdiff/constraints.txt" in TEXT
    pinned = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^ray==\d", pinned, re.MULTILINE)
