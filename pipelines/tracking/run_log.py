"""A run as a cluster's operators see it: numbers in Ray's metrics, events as JSON lines among Ray's logs.

Ray's dashboard and Prometheus carry the numbers as `ray_corrdiff_NAME{kind="phase1", run="first"}`. The events are in
`corrdiff-KIND-RUN.log` in the log directory of the driver's node, which Ray's dashboard shows and log collectors read.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from pipelines.runtime.ray_private import logs_directory
from pipelines.tracking.gauges import GAUGES


class RunLog:
    """The numbers and events of one run, from a process that is connected to Ray on the driver's node."""

    def __init__(self, kind: str, run: str) -> None:
        import ray

        self._tags = {"kind": kind, "run": plain(run)}
        self._job = ray.get_runtime_context().get_job_id()
        self._gauges: dict[str, Any] = {}
        self._path = logs_directory() / f"corrdiff-{kind}-{re.sub(r'[^A-Za-z0-9._-]+', '-', run)[-80:]}.log"
        self._failed = False

    def values(self, values: dict[str, float], step: int) -> None:
        """Record numbers that the table of gauges names, `step` pictures or crops into the run."""
        with self._no_failure():
            for name, value in values.items():
                self._gauge(name).set(value, tags=self._tags)
        self._write({"step": step, **values})

    def _gauge(self, name: str) -> Any:
        from ray.util.metrics import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(f"corrdiff_{name}", GAUGES[name].title, tuple(self._tags))
        return self._gauges[name]

    def event(self, sentence: str) -> None:
        """Record something that happened, in a sentence."""
        self._write({"event": sentence})

    def _write(self, fields: dict[str, Any]) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = json.dumps({"time": stamp, "job": self._job, **self._tags, **fields})
        with self._no_failure(), self._path.open("a") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def _no_failure(self) -> Iterator[None]:
        """Let nothing that goes wrong with a measurement end the job; it is said once."""
        try:
            yield
        except Exception as error:
            if not self._failed:
                print(f"the cluster's metrics or logs of this run are not complete: {error}", file=sys.stderr)
            self._failed = True


def plain(text: str) -> str:
    """In ASCII, which is all that Ray's metrics carry: other letters as `\\xf6` and the like."""
    return text.encode("ascii", "backslashreplace").decode()
