"""What the cluster has, what it may come to have, and how a pipeline's stages share it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from corrdiff.errors import UsageError

NETWORK_CPUS, CODER_CPUS, TASK_CPUS = 0.8, 0.05, 0.15
"""What networks on a core, a coder and a task of the other stages reserve: where networks are on all cores there is
still room for what feeds and empties them. On GPUs networks reserve no core, and the others a whole one."""

CORES_A_TASK = 4
"""Where networks are on the cores, a stage that feeds or empties them has one task at a time for so many cores."""

GPUS_LABEL = "corrdiff-gpus"
"""Label of the head of a cluster that grows by itself: how many GPUs it may come to have. Ray does not say."""

MOST_ACTORS = 1 << 14
"""Ray Data makes as many as there is room and work for."""


def cluster_gpus() -> int:
    """How many GPUs are there, or on an autoscaling cluster, how many may come."""
    return max([gpus_now(), *(int(labels.get(GPUS_LABEL, 0)) for labels in _labels())])


def gpus_now() -> int:
    """How many GPUs are there now."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def cluster_cpus() -> int:
    """How many processors are there now, at least one."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 0)))


def may_grow() -> bool:
    """Whether the cluster says that machines come when they are needed."""
    return any(GPUS_LABEL in labels for labels in _labels())


def _labels() -> list[dict[str, str]]:
    """The labels of each machine that is there."""
    import ray

    return [node.get("Labels") or {} for node in ray.nodes() if node["Alive"]]


class Pools(NamedTuple):
    """Ray Data's options for the stages of a pipeline with networks in it."""

    device: Literal["cpu", "cuda"]
    networks: dict[str, Any]
    """A pool of actors: one for each GPU, or without any for each core; it grows and shrinks with the cluster."""
    coders: dict[str, Any]
    """A pool of actors for work that needs torch but no networks: a task's process may be gone after a second without
    work, and torch takes seconds to import."""
    tasks: dict[str, Any]
    """Tasks of a stage that feeds or empties those pools, and starts quickly."""


def pools(device: str, workers: int | None) -> Pools:
    """Deal the cluster to the stages of a pipeline: to networks, and to what feeds and empties them.

    Args:
        device: "auto", "cpu" or "cuda".
        workers: most actors with networks; None for as many as there are GPUs or cores.

    Raises:
        UsageError: a GPU is asked for and the cluster has none.
    """
    from ray.data import ActorPoolStrategy

    with_gpus = device != "cpu" and cluster_gpus() > 0
    if device == "cuda" and not with_gpus:
        raise UsageError("--device cuda, but the cluster has no GPU")
    most, now = workers or MOST_ACTORS, gpus_now() if with_gpus else cluster_cpus()
    compute = ActorPoolStrategy(min_size=1, max_size=most, initial_size=min(most, max(1, now)))
    if with_gpus:
        coders = {"compute": ActorPoolStrategy(min_size=1, max_size=MOST_ACTORS), "num_cpus": 1}
        networks = {"compute": compute, "num_gpus": 1, "num_cpus": 0}
        return Pools("cuda", networks, coders, {"num_cpus": 1})
    number = max(1, now // CORES_A_TASK)
    at_most = MOST_ACTORS if may_grow() else number
    coders = {"compute": ActorPoolStrategy(min_size=number, max_size=at_most), "num_cpus": CODER_CPUS}
    tasks = {"num_cpus": TASK_CPUS, "concurrency": at_most}
    return Pools("cpu", {"compute": compute, "num_cpus": NETWORK_CPUS}, coders, tasks)
