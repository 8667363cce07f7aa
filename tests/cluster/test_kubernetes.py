"""The manifests for Kubernetes against the rest of the project: images, versions, ports, labels, names, commands."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from ray._private import ray_constants

from pipelines.cli import Commands
from pipelines.runtime.resources import GPUS_LABEL
from tests.support.image_build import targets

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "cluster" / "kubernetes"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
UNITS = {"Gi": 1 << 30, "Mi": 1 << 20}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / name).read_text()))


def added() -> list[dict[str, Any]]:
    """The groups of workers that the overlay with GPUs brings."""
    patch = yaml.safe_load((MANIFESTS / "overlays/gpu/gpu-workers.yaml").read_text())
    return [step["value"] for step in patch if step["path"] == "/spec/workerGroupSpecs/-"]


CLUSTER = documents("base/ray-cluster.yaml")[0]
HEAD = CLUSTER["spec"]["headGroupSpec"]
WORKERS = {group["groupName"]: group for group in [*CLUSTER["spec"]["workerGroupSpecs"], *added()]}
JOBS = {path.stem: documents(f"jobs/{path.name}")[0] for path in sorted((MANIFESTS / "jobs").glob("*.yaml"))}
MLFLOW = {document["kind"]: document for document in documents("base/mlflow.yaml")}
PODS = {
    "head": HEAD["template"]["spec"],
    **{name: group["template"]["spec"] for name, group in WORKERS.items()},
    **{f"job {name}": job["spec"]["submitterPodTemplate"]["spec"] for name, job in JOBS.items()},
    "mlflow": MLFLOW["Deployment"]["spec"]["template"]["spec"],
}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return dict(only)


def environment(pod: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container(pod)["env"]}


def in_bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def built(overlay: str) -> list[dict[str, Any]]:
    """What kustomize makes of an overlay."""
    programs = [["kubectl", "kustomize"], ["kustomize", "build"]]
    program = next((words for words in programs if shutil.which(words[0])), None)
    if program is None:
        pytest.skip("there is neither kubectl nor kustomize")
    done = subprocess.run([*program, str(MANIFESTS / overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("name", PODS)
def test_images_are_those_of_the_dockerfile_and_of_this_version(name: str) -> None:
    image = container(PODS[name])["image"].removeprefix("REGISTRY/")
    target = {"corrdiff": "cpu", "corrdiff-cuda": "cuda"}[image.partition(":")[0]]
    assert image.partition(":")[2] == VERSION
    assert target in targets()
    assert (target == "cuda") == ("nvidia.com/gpu" in container(PODS[name])["resources"]["limits"])


def test_rays_version_is_the_one_that_is_installed() -> None:
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert CLUSTER["spec"]["rayVersion"] == pinned


@pytest.mark.parametrize("name", PODS)
def test_no_pod_may_more_than_it_needs(name: str) -> None:
    pod, limits = PODS[name], container(PODS[name])["resources"]["limits"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert pod["automountServiceAccountToken"] is (name == "head")
    assert {"cpu", "memory"} <= limits.keys()
    assert container(pod)["resources"]["requests"]["memory"] == limits["memory"] or name == "mlflow"
    writable = {mount["mountPath"] for mount in container(pod)["volumeMounts"]}
    assert environment(pod)["HOME"] in writable


def test_the_user_of_the_pods_is_the_images() -> None:
    (user,) = set(re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    assert {str(pod["securityContext"]["runAsUser"]) for pod in PODS.values()} == {user}


@pytest.mark.parametrize("name", ["head", *WORKERS])
def test_shared_memory_has_room_for_rays_object_store(name: str) -> None:
    pod = PODS[name]
    (shared,) = (volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shared-memory")
    assert shared["medium"] == "Memory"
    memory = in_bytes(container(pod)["resources"]["limits"]["memory"])
    assert in_bytes(shared["sizeLimit"]) >= memory * ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container(pod)["volumeMounts"]


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_has_drained_before_kubernetes_kills_it(name: str) -> None:
    drain_s = float(environment(PODS[name])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 60 <= drain_s <= PODS[name]["terminationGracePeriodSeconds"] - 15


def test_ray_drains_its_machine_at_a_sigterm_for_as_long_as_its_environment_says() -> None:
    assert "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S" in Path(str(ray_constants.__file__)).read_text()
    assert ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S > 0


def test_a_sigterm_to_the_shell_that_kuberay_starts_is_one_to_ray() -> None:
    """Ray is the last command of a 'bash -c': bash makes place for it, or Ray would never hear."""
    ray = f"{shlex.quote(sys.executable)} -c 'import os; print(os.getpid())'"
    shell = subprocess.Popen(["bash", "-c", "--", f"ulimit -n 1024; {ray}"], stdout=subprocess.PIPE, text=True)
    assert int(shell.communicate()[0]) == shell.pid


def test_gpu_stages_are_on_gpu_machines_and_cpu_stages_on_the_others() -> None:
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    for group in WORKERS.values():
        has_gpu = "nvidia.com/gpu" in container(group["template"]["spec"])["resources"]["limits"]
        assert has_gpu == (group["rayStartParams"].get("num-cpus") == "0")


def test_the_head_says_how_many_gpus_may_come() -> None:
    assert HEAD["labels"] == {GPUS_LABEL: "0"}
    patch = yaml.safe_load((MANIFESTS / "overlays/gpu/gpu-workers.yaml").read_text())
    (label,) = (step["value"] for step in patch if step["path"] == f"/spec/headGroupSpec/labels/{GPUS_LABEL}")
    assert int(label) == sum(group["maxReplicas"] for group in added())


def test_mlflow_listens_where_the_others_look_for_it() -> None:
    service, server = MLFLOW["Service"], container(PODS["mlflow"])
    (port,) = (port["port"] for port in service["spec"]["ports"])
    address = f"{service['metadata']['name']}:{port}"
    assert {environment(PODS[name])["MLFLOW_TRACKING_URI"] for name in ["head", *WORKERS]} == {f"http://{address}"}
    (allowed,) = (word.partition("=")[2] for word in server["args"] if word.startswith("--allowed-hosts="))
    assert address in allowed.split(",")
    assert f"--port={port}" in server["args"]
    assert service["spec"]["selector"] == MLFLOW["Deployment"]["spec"]["template"]["metadata"]["labels"]


def test_budgets_and_jobs_select_this_cluster() -> None:
    name = CLUSTER["metadata"]["name"]
    head, mlflow = documents("base/disruption-budgets.yaml")
    assert head["spec"]["selector"]["matchLabels"]["ray.io/cluster"] == name
    assert mlflow["spec"]["selector"]["matchLabels"] == MLFLOW["Service"]["spec"]["selector"]
    assert {job["spec"]["clusterSelector"]["ray.io/cluster"] for job in JOBS.values()} == {name}


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_command_is_one_of_ours(name: str) -> None:
    program, *arguments = shlex.split(JOBS[name]["spec"]["entrypoint"])
    assert (program, arguments[0]) == ("corrdiff", name)
    tyro.cli(Commands, args=arguments, config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes))
    assert all(uri.startswith("s3://BUCKET/") for uri in arguments if "/" in uri)


def test_training_asks_for_no_more_gpus_than_may_come() -> None:
    (most,) = re.findall(r"--workers (?:\d+:)?(\d+)", JOBS["train"]["spec"]["entrypoint"])
    assert int(most) <= sum(group["maxReplicas"] for group in added())


@pytest.mark.parametrize("overlay", ["base", "overlays/gpu", "overlays/local"])
def test_kustomize_builds_an_overlay(overlay: str) -> None:
    made = {(document["kind"], document["metadata"]["name"]): document for document in built(overlay)}
    assert {document["metadata"].get("namespace", "corrdiff") for document in made.values()} == {"corrdiff"}
    spec = made["RayCluster", "corrdiff"]["spec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert groups.keys() == ({"cpu", "gpu", "gpu-spot"} if overlay == "overlays/gpu" else {"cpu"})
    pods = [spec["headGroupSpec"]["template"]["spec"], *(group["template"]["spec"] for group in groups.values())]
    for pod in pods:
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container(pod)["volumeMounts"]} == names
    if overlay == "overlays/gpu":
        assert all(container(pod)["image"].startswith("REGISTRY/corrdiff") for pod in pods)
        assert groups["gpu-spot"]["template"]["spec"]["nodeSelector"]["corrdiff-spot"] == "true"
        taints = {taint["key"] for taint in groups["gpu-spot"]["template"]["spec"]["tolerations"]}
        assert taints == {"nvidia.com/gpu", "corrdiff-spot"}
    if overlay == "overlays/local":
        assert sum(float(container(pod)["resources"]["limits"]["cpu"]) for pod in pods) <= 2
        assert all({"name": "data", "mountPath": "/data"} in container(pod)["volumeMounts"] for pod in pods)
