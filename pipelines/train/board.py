"""Between the first worker of a training run and whoever watches: what it says, how far it is, what it cost.

Imports neither torch nor the networks, for its process starts with every run.
"""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

from pipelines.display.progress import console, display
from pipelines.tracking.run_log import RunLog
from pipelines.train.config import PhaseName
from pipelines.train.costs import Costs


@dataclasses.dataclass
class BoardState:
    """All that is on the board."""

    tracking: str = ""
    """Where MLflow is. It is here and not in the loop's configuration, which Ray shows, for it may hold a password."""
    crops: int = 0
    """How many crops the run has seen."""
    note: str = ""
    """What stands beside that: the newest losses and costs."""
    sentences: list[str] = dataclasses.field(default_factory=list)
    """What people are to be told, the first first."""
    costs: Costs | None = None
    """What all steps so far have cost; None before the first."""
    failed: str = ""
    """Why the run has failed for good."""


class Board:
    """A Ray actor between rank 0 and whoever watches; it outlives the workers and sums what their restarts cost."""

    def __init__(self, phase: PhaseName, run: str) -> None:
        self._state = BoardState()
        self._log = RunLog(phase, run)

    def track(self, uri: str) -> None:
        """Say where MLflow is."""
        self._state.tracking = uri

    def read(self) -> BoardState:
        """Give all that is on the board."""
        return self._state

    def show(self, crops: int, note: str) -> None:
        """Say how far the run is."""
        self._state.crops, self._state.note = crops, note

    def say(self, sentence: str) -> None:
        """Tell people something once."""
        self._state.sentences.append(sentence)
        self._log.event(sentence)

    def spend(self, costs: Costs) -> None:
        """Add what the last steps cost."""
        before = self._state.costs
        self._state.costs = costs if before is None else before.joined(costs)
        self._log.values({"crops": float(self._state.crops), **costs.metrics()}, self._state.crops)

    def fail(self, sentence: str) -> None:
        """Say why the run has failed, where trying again would come to the same."""
        self._state.failed = sentence


def watch(board: Any, title: str, total: int, stop: threading.Event) -> None:
    """Show what rank 0 writes on the board, until told to stop."""
    import ray

    told = 0
    with display(title, total, "crops") as shown:
        while True:
            ended = stop.wait(0.5)
            try:
                state = ray.get(board.read.remote(), timeout=10)
            except ray.exceptions.RayError:  # busy, or going away: the main thread reports that
                if ended:
                    return
                continue
            for sentence in state.sentences[told:]:
                console.print(sentence)
            told = len(state.sentences)
            if state.crops:
                shown.update(min(state.crops, total), state.note)
            if ended:
                return
