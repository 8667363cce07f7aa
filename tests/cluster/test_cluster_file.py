"""ray_cluster.yaml against Ray's own schema, and against what the documentation and the code say."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from pipelines.runtime.resources import GPUS_LABEL
from tests.support.servers import wait_for

ROOT = Path(__file__).parents[2]
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


def test_the_security_group_is_the_owners_and_not_one_that_ray_opens_to_the_world() -> None:
    kinds = prepared(TEXT)["available_node_types"].values()
    assert all(kind["node_config"]["SecurityGroupIds"] for kind in kinds)  # Ray leaves these alone
    assert "security_group" not in yaml.safe_load(TEXT)["provider"]  # it would let ssh in from everywhere
    assert "--dashboard-host=127.0.0.1" in TEXT


def test_only_the_head_may_start_machines() -> None:
    kinds = prepared(TEXT)["available_node_types"]
    profiles = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in kinds.items()}
    assert profiles.pop("head") == "corrdiff-head"
    assert set(profiles.values()) == {"corrdiff-worker"}


def test_what_is_sent_to_the_machines_is_code_alone() -> None:
    mounts = yaml.safe_load(TEXT)["file_mounts"]
    sent = {local for remote, local in mounts.items() if remote.startswith("~/corrdiff/")}
    assert sent == {"corrdiff", "pipelines", "cluster", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / local).exists() for local in sent)


@pytest.mark.parametrize("commands", ["setup_commands", "head_start_ray_commands", "worker_start_ray_commands"])
def test_the_shell_commands_run(commands: str, tmp_path: Path) -> None:
    """In bash, as Ray calls it, with stand-ins for the programs, which write down what they were told."""
    programs, home, told = tmp_path / "bin", tmp_path / "home", tmp_path / "told"
    for program in (programs / n for n in ("ray", "mlflow", "python", "curl", "ulimit")):
        write_program(program, told)
    write_program(home / ".local" / "bin" / "uv", told)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("token")
    (home / "corrdiff").mkdir()
    (home / ".bashrc").write_text("")
    environment = {"HOME": str(home), "PATH": f"{programs}:/usr/bin:/bin:/usr/sbin:/sbin", "RAY_HEAD_IP": "10.0.0.5"}
    for command in yaml.safe_load(TEXT)[commands]:
        done = subprocess.run(
            ["bash", "-c", f"source ~/.bashrc; true && export OMP_NUM_THREADS=1 && ({command})"], env=environment,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
    said = told.read_text() if told.exists() else ""
    if commands == "setup_commands":
        assert f"-c {home}/corrdiff/constraints.txt {home}/corrdiff[aws,cluster]" in said
        assert "RAY_AUTH_MODE=token" in (home / ".bashrc").read_text()
    else:
        assert re.search(r"ray start --(head|address=10\.0\.0\.5:6379)", said)
    if commands == "head_start_ray_commands":
        wait_for("the server", lambda: "mlflow server --host" in told.read_text())
    if commands == "worker_start_ray_commands":
        wait_for("the watcher", lambda: "python -m cluster.preemption --address 10.0.0.5:6379" in told.read_text())


def write_program(path: Path, told: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$(basename $0) $*" >> {told}\n')
    path.chmod(0o755)


def test_there_is_no_secret_in_it_and_tokens_are_wanted() -> None:
    assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret|password|BEGIN [A-Z ]*PRIVATE KEY", TEXT, re.IGNORECASE)
    assert "RAY_AUTH_MODE=token" in TEXT


def test_gpu_stages_are_on_gpu_machines_and_cpu_stages_on_the_others() -> None:
    kinds = yaml.safe_load(TEXT)["available_node_types"]
    with_both = [n for n, kind in kinds.items() if kind["resources"].get("GPU", 0) and kind["resources"]["CPU"]]
    assert with_both == []
    gpus = sum(kind["resources"].get("GPU", 0) * kind["max_workers"] for kind in kinds.values())
    assert int(kinds["head"]["labels"][GPUS_LABEL]) == gpus == 16


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
