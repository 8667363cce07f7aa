"""Connecting to Ray quietly: the cluster that RAY_ADDRESS names (as it is inside a Ray job), else one of our own."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

from corrdiff.errors import JobError, UsageError
from pipelines.runtime.ray_private import rest_between_steps

_UNOBSERVED = {"RAY_enable_metrics_collection": "0", "RAY_task_events_report_interval_ms": "0"}
"""Ray's own measurements, which nobody can see in a session without a dashboard: on a machine of few cores its idle
processes took a tenth of the time for them."""


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Have Ray for the length of a block; a cluster that is started here is stopped here.

    Raises `UsageError` where the cluster that RAY_ADDRESS names cannot be reached.
    """
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
        ours = re.findall(r"^(?:corrdiff|pipelines)[\w.]*\.(\w+Error): (.+)$", text, re.MULTILINE)
        if ours:
            kind, sentence = ours[-1]
            raise (JobError if kind == "JobError" else UsageError)(sentence) from None
        raised = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception)(?:: .+)?$", text, re.MULTILINE)
        of_tasks = [line for line in raised if not line.startswith("ray.")]  # what Ray says of it says nothing
        if of_tasks:
            raise JobError(f"a task failed with {of_tasks[-1]}") from error
        raise JobError(f"Ray: {[type(error).__name__, *text.splitlines()[-1:], *raised][-1]}") from error


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
