"""Connecting to Ray quietly: the cluster that RAY_ADDRESS names (as it is inside a Ray job), else one of our own."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from corrdiff.errors import JobError, UsageError
from pipelines.runtime.ray_private import rest_between_steps

NETWORK_CPUS, CODER_CPUS, TASK_CPUS = 0.8, 0.05, 0.15
"""What networks on a core, a coder and a task of the other stages reserve: where networks are on all cores there is
still room for what feeds and empties them. On GPUs networks reserve no core, and the others a whole one."""

CORES_A_TASK = 4
"""Where networks are on the cores, a stage that feeds or empties them has a task at a time for so many."""

GPUS_LABEL = "corrdiff-gpus"
"""Label of the head of a cluster that grows by itself: how many GPUs it may come to have. Ray does not say."""

MOST_ACTORS = 1 << 14
"""Ray Data makes as many as there is room and work for."""

_UNOBSERVED = {"RAY_enable_metrics_collection": "0", "RAY_task_events_report_interval_ms": "0"}
"""Ray's own measurements, which nobody can see in a session without a dashboard: on a machine of few cores its idle
processes took a tenth of the time for them."""


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Have Ray for the length of a block; what was started here is stopped here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_LOGGING", "0")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import ray
    import ray.data

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.update(_UNOBSERVED)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        if not address:
            raise
        causes = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): (.+)$", f"{error.__cause__ or ''}", re.MULTILINE)
        raise UsageError(f"RAY_ADDRESS is {address}: {[str(error).splitlines()[0], *causes][-1]}") from error
    quiet_ray()
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def ray_errors() -> Iterator[None]:
    """Give what a Ray task raised as the plain error that it was, and a failure of Ray itself as a `JobError`.

    Ray Data passes on an error's text and not always the error, so its last line that names one of ours is looked for.
    """
    import ray.exceptions

    try:
        yield
    except (UsageError, JobError, ray.exceptions.RayError) as error:
        if not isinstance(error, ray.exceptions.RayError):
            raise
        text = str(error).strip()
        ours = re.findall(r"^corrdiff[\w.]*\.(\w+Error): (.+)$", text, re.MULTILINE)
        if ours:
            kind, sentence = ours[-1]
            raise (JobError if kind == "JobError" else UsageError)(sentence) from None
        others = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): .+$", text, re.MULTILINE)
        raise JobError(f"Ray: {[type(error).__name__, *text.splitlines()[-1:], *others][-1]}") from error


def quiet_execution(context: Any) -> None:
    """Keep the executions of a Ray Data context quiet, and their scheduler from taking a core."""
    rest_between_steps(context)
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def quiet_ray() -> None:
    """Keep Ray's own chatter out of the way; its logs stay in its session directory."""
    import ray.data

    quiet_execution(ray.data.DataContext.get_current())
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def cluster_gpus() -> int:
    """GPUs that are there, or of an autoscaling cluster those that may come."""
    return max([gpus_now(), *(int(labels.get(GPUS_LABEL, 0)) for labels in _labels())])


def gpus_now() -> int:
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def cluster_cpus() -> int:
    """Processors that are there now, at least one."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 0)))


def may_grow() -> bool:
    """Whether the cluster says that machines come when they are needed."""
    return any(GPUS_LABEL in labels for labels in _labels())


def _labels() -> list[dict[str, str]]:
    """Of the machines that are there."""
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
    """Of each stage that feeds or empties them and starts quickly."""


def pools(device: str, workers: int | None) -> Pools:
    """Raises `UsageError` where a GPU is asked for and the cluster has none."""
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
