"""Between the first worker of a training run and whoever watches: what it says, how far it is, what it cost.

Imports neither torch nor the networks, for its process starts with every run.
"""

from __future__ import annotations

import threading
from typing import Any

from pipelines.display.progress import console, display
from pipelines.tracking.run_log import RunLog
from pipelines.train.config import PhaseName
from pipelines.train.costs import Costs


class Board:
    """A Ray actor between rank 0 and whoever watches; it outlives the workers and sums what their restarts cost."""

    def __init__(self, phase: PhaseName, run: str) -> None:
        self._state: dict[str, Any] = {"crops": 0, "note": "", "failed": "", "said": []}
        self._log = RunLog(phase, run)

    def write(self, **values: Any) -> None:
        self._state.update(values)

    def say(self, sentence: str) -> None:
        self._state["said"].append(sentence)
        self._log.event(sentence)

    def spend(self, costs: Costs) -> None:
        before = self._state.get("costs")
        self._state["costs"] = costs if before is None else before.joined(costs)
        self._log.values({"crops": float(self._state["crops"]), **costs.metrics()}, self._state["crops"])

    def read(self) -> dict[str, Any]:
        return self._state


def watch(board: Any, title: str, total: int, stop: threading.Event) -> None:
    """Show what rank 0 writes on the board, until told to stop."""
    import ray

    said = 0
    with display(title, total, "crops") as shown:
        while True:
            ended = stop.wait(0.5)
            try:
                state = ray.get(board.read.remote(), timeout=10)
            except ray.exceptions.RayError:  # busy, or going away: the main thread reports that
                if ended:
                    return
                continue
            for sentence in state["said"][said:]:
                console.print(sentence)
            said = len(state["said"])
            if state["crops"]:
                shown.update(min(state["crops"], total), state["note"])
            if ended:
                return
