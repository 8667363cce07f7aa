"""When a checkpoint or a validation is due, at any number of workers."""

from __future__ import annotations

import time


class Cadence:
    """Due after so many crops where that is asked for, else after so many minutes since the last one."""

    def __init__(self, crops: int | None, minutes: float) -> None:
        self._crops, self._seconds = crops, 60 * minutes
        self.begin()

    def begin(self) -> None:
        """Count the minutes from now on."""
        self._since = time.monotonic()

    def is_late(self) -> bool:
        """Say whether the minutes are over by this worker's clock; what workers do, they have to agree on."""
        return self._crops is None and time.monotonic() - self._since >= self._seconds

    def is_due(self, before: int, after: int, late: bool) -> bool:
        """Say whether it is due after a step that went from `before` to `after` crops. `late` is what some worker's
        clock said when the step began."""
        return late if self._crops is None else before // self._crops != after // self._crops
