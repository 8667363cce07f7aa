"""The cluster files against Ray's own schema, and against what the documentation and the code say."""

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
AWS, GOOGLE = ((ROOT / name).read_text() for name in ("ray_cluster.yaml", "ray_cluster_gcp.yaml"))
PAGES = {AWS: ROOT / "docs" / "aws.md", GOOGLE: ROOT / "docs" / "google-cloud.md"}
on_each_cloud = pytest.mark.parametrize("text", [AWS, GOOGLE], ids=["aws", "gcp"])


def prepared(text: str) -> dict[str, Any]:
    filled: dict[str, Any] = prepare_config(yaml.safe_load(text))
    validate_config(filled)
    return filled


@on_each_cloud
def test_the_file_is_what_ray_accepts(text: str) -> None:
    config = prepared(text)
    assert set(config["available_node_types"]) == {"head", "cpu", "gpu", "gpu_spot"}
    assert config["head_node_type"] == "head"
    workers = [kind for name, kind in config["available_node_types"].items() if name != "head"]
    assert {kind["min_workers"] for kind in workers} == {0}
    assert sum(kind["max_workers"] for kind in workers) == config["max_workers"]
    assert config["idle_timeout_minutes"] == 5


def test_one_kind_of_machine_is_spot() -> None:
    kinds = prepared(AWS)["available_node_types"]
    assert {n for n, k in kinds.items() if "InstanceMarketOptions" in k["node_config"]} == {"gpu_spot"}
    kinds = prepared(GOOGLE)["available_node_types"]
    models = {n: k["node_config"].get("scheduling", {}).get("provisioningModel") for n, k in kinds.items()}
    assert {n for n, model in models.items() if model == "SPOT"} == {"gpu_spot"}


def test_metadata_of_aws_want_a_token() -> None:
    kinds = prepared(AWS)["available_node_types"].values()
    assert {kind["node_config"]["MetadataOptions"]["HttpTokens"] for kind in kinds} == {"required"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("idle_timeout_minutes:", "idle_timeout_minuets:"), ("max_workers: 24", "max_workers: many"),
        ("    max_workers: 8", "    max_worker: 8"), ("head_node_type: head", "head_node_type: haed"),
        ("    resources: {CPU: 16}", "    resources: {CPU: sixteen}"),
    ],
)  # fmt: skip
def test_a_typo_is_found(right: str, wrong: str) -> None:
    assert right in AWS
    with pytest.raises((ValidationError, ValueError, KeyError)):
        prepared(AWS.replace(right, wrong, 1))


def test_the_security_group_is_the_owners_and_not_one_that_ray_opens_to_the_world() -> None:
    kinds = prepared(AWS)["available_node_types"].values()
    assert all(kind["node_config"]["SecurityGroupIds"] for kind in kinds)  # Ray leaves these alone
    assert "security_group" not in yaml.safe_load(AWS)["provider"]  # it would let ssh in from everywhere


def test_the_network_is_the_owners_and_not_the_one_that_google_opens_to_the_world() -> None:
    for kind in prepared(GOOGLE)["available_node_types"].values():
        (interface,) = kind["node_config"]["networkInterfaces"]  # Ray leaves these alone
        assert interface["subnetwork"].endswith("/subnetworks/corrdiff")


@on_each_cloud
def test_the_dashboard_listens_to_its_own_machine_alone(text: str) -> None:
    assert "--dashboard-host=127.0.0.1" in text


def test_only_the_head_may_start_machines() -> None:
    kinds = prepared(AWS)["available_node_types"]
    profiles = {name: kind["node_config"]["IamInstanceProfile"]["Name"] for name, kind in kinds.items()}
    kinds = prepared(GOOGLE)["available_node_types"]
    accounts = {name: kind["node_config"]["serviceAccounts"][0]["email"] for name, kind in kinds.items()}
    for who in (profiles, accounts):
        assert who.pop("head").startswith("corrdiff-head")
        assert len(set(who.values())) == 1
        assert next(iter(who.values())).startswith("corrdiff-worker")


@on_each_cloud
def test_what_is_sent_to_the_machines_is_code_alone(text: str) -> None:
    mounts = yaml.safe_load(text)["file_mounts"]
    sent = {local for remote, local in mounts.items() if remote.startswith("~/corrdiff/")}
    assert sent == {"corrdiff", "pipelines", "cluster", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert all((ROOT / local).exists() for local in sent)


@on_each_cloud
@pytest.mark.parametrize("commands", ["setup_commands", "head_start_ray_commands", "worker_start_ray_commands"])
def test_the_shell_commands_run(commands: str, text: str, tmp_path: Path) -> None:
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
    for command in yaml.safe_load(text)[commands]:
        done = subprocess.run(
            ["bash", "-c", f"source ~/.bashrc; true && export OMP_NUM_THREADS=1 && ({command})"], env=environment,
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
    said = told.read_text() if told.exists() else ""
    extras, cloud = ("aws,cluster", "") if text == AWS else ("cluster,gcp", " --cloud gcp")
    if commands == "setup_commands":
        assert f"-c {home}/corrdiff/constraints.txt {home}/corrdiff[{extras}]" in said
        assert "RAY_AUTH_MODE=token" in (home / ".bashrc").read_text()
    else:
        assert re.search(r"ray start --(head|address=10\.0\.0\.5:6379)", said)
    if commands == "head_start_ray_commands":
        wait_for("the server", lambda: "mlflow server --host" in told.read_text())
    if commands == "worker_start_ray_commands":
        watcher = f"python -m cluster.preemption --address 10.0.0.5:6379{cloud}\n"
        wait_for("the watcher", lambda: watcher in told.read_text())


def write_program(path: Path, told: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "$(basename $0) $*" >> {told}\n')
    path.chmod(0o755)


@on_each_cloud
def test_there_is_no_secret_in_it_and_tokens_are_wanted(text: str) -> None:
    assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret|password|BEGIN [A-Z ]*PRIVATE KEY", text, re.IGNORECASE)
    assert "RAY_AUTH_MODE=token" in text


@on_each_cloud
def test_gpu_stages_are_on_gpu_machines_and_cpu_stages_on_the_others(text: str) -> None:
    kinds = yaml.safe_load(text)["available_node_types"]
    with_both = [n for n, kind in kinds.items() if kind["resources"].get("GPU", 0) and kind["resources"]["CPU"]]
    assert with_both == []
    gpus = sum(kind["resources"].get("GPU", 0) * kind["max_workers"] for kind in kinds.values())
    assert int(kinds["head"]["labels"][GPUS_LABEL]) == gpus == 16


@on_each_cloud
def test_the_documentation_says_the_same_numbers(text: str) -> None:
    kinds = yaml.safe_load(text)["available_node_types"]
    table = PAGES[text].read_text()
    for name, kind in kinds.items():
        machine = kind["node_config"].get("InstanceType") or kind["node_config"]["machineType"]
        most = 1 if name == "head" else kind["max_workers"]
        assert re.search(rf"\| `{name}` \| {machine}[^|]* \| {most} \|", table), name
    for needed in re.findall(r"--workers (?:\d+:)?(\d+)", (ROOT / "docs" / "cluster.md").read_text()):
        gpus = sum(kind["resources"].get("GPU", 0) * kind["max_workers"] for kind in kinds.values())
        assert int(needed) <= gpus


@on_each_cloud
def test_the_versions_are_those_of_the_constraints(text: str) -> None:
    assert "-c ~/corrdiff/constraints.txt" in text
    pinned = (ROOT / "constraints.txt").read_text()
    assert re.search(r"^ray==\d", pinned, re.MULTILINE)
