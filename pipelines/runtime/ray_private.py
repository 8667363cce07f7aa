"""Everything of Ray's that is not public and that this project uses. tests/distributed/test_private.py uses each on a
real cluster: an upgrade of Ray has to pass it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

STEP_S = 0.03
"""Least time between two looks of Ray Data's scheduler at its tasks."""


def logs_directory() -> Path:
    """Where Ray keeps its logs on this node, which its dashboard shows and log collectors read."""
    import ray

    return Path(ray._private.worker._global_node.get_logs_dir_path())


def is_leaving() -> bool:
    """Whether Ray is draining a machine of this training run, asked in one of its workers.

    Ray's public call is a collective of its own: slow for a step.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def rest_between_steps(context: Any) -> None:
    """Let the scheduler of a Ray Data context's executions rest between its steps.

    While what has been read waits for its consumer Ray's scheduler goes round without a pause: in a trainer that held a
    core and Python's lock, and training on two cores was less than half as quick.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Rest(ExecutionCallback):  # type: ignore[misc]
        def on_execution_step(self, executor: object) -> None:
            time.sleep(STEP_S)

    context.custom_execution_callback_classes = [Rest]
