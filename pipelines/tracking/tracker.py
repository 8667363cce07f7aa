"""MLflow, everywhere the same way: one experiment, a run for each phase, compression and evaluation, linked by tags.

Nothing here ever stops or slows a job: a thread of its own talks to the server. When the server goes away that is said
once, and what was measured is kept: in memory for when it comes back, and as JSON lines and files in `local`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from corrdiff.errors import UsageError
from corrdiff.uris import redacted
from pipelines.files import storage
from pipelines.files.records import read_record
from pipelines.tracking import lineage

EXPERIMENT = "corrdiff"
RECORD = "mlflow.json"
RETRY_EVERY_S = 30.0
CLOSE_TIMEOUT_S = 60.0


def tracking_uri() -> str:
    """Say where MLflow is: MLFLOW_TRACKING_URI, else a sqlite file in the working directory.

    Raises `UsageError` where that would be the temporary directory of a Ray job, or cannot be said.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    lost = not given or (given.startswith("sqlite:") and not given.startswith("sqlite:////"))
    if lost and storage.in_job():
        raise UsageError(
            "a Ray job needs an MLflow server, for its working directory goes away: set MLFLOW_TRACKING_URI on the "
            "cluster's machines, or for this job with corrdiff submit --env MLFLOW_TRACKING_URI=http://HOST:5000"
        )
    if not given and "?" in os.getcwd():
        raise UsageError(
            f"MLflow's database would be in {os.getcwd()}, and no sqlite address can have the '?' in that path: set "
            "MLFLOW_TRACKING_URI, or work in another directory"
        )
    return given or f"sqlite:///{os.path.abspath('mlflow.db')}"


@dataclass(frozen=True)
class MlflowRecord:
    """Which MLflow run belongs to a directory."""

    run_id: str


def recorded_run(directory: str) -> str | None:
    """Read which MLflow run belongs to a directory; None where none was written down.

    Raises `UsageError` where the record is damaged.
    """
    try:
        return read_record(storage.join(directory, RECORD), MlflowRecord).run_id
    except (FileNotFoundError, NotADirectoryError):
        return None


def record_run(directory: str, run_id: str) -> None:
    """Write down which MLflow run belongs to a directory, for whoever goes on in it."""
    storage.write_json(storage.join(directory, RECORD), dataclasses.asdict(MlflowRecord(run_id)))


class RunSpec(NamedTuple):
    """What a run in MLflow is called and begins with."""

    name: str
    tags: dict[str, str]
    params: dict[str, Any]
    run_id: str | None = None
    """An earlier run to go on with."""


class _Item(NamedTuple):
    what: str
    """"metrics", "tags", "artifact" or "links"."""
    values: dict[str, Any]
    step: int
    time_ms: int


class Tracker:
    """One run in MLflow. All calls return at once; `close` waits for what is left to be sent."""

    def __init__(self, uri: str, spec: RunSpec, local: str, say: Callable[[str], None]) -> None:
        """
        Args:
            uri: where MLflow is.
            spec: the run to begin or to go on with.
            local: directory or URI for what could not be sent.
            say: told once when the server cannot be reached.
        """
        self._uri, self._spec, self._local, self._say = uri, spec, local, say
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._backlog: list[_Item] = []
        self._offline = False
        self._retry_at = 0.0
        self._closing = self._no_artifacts = False
        self._artifacts_at = 0.0
        self._client: Any = None
        self._run_id = spec.run_id
        self._begun = threading.Event()
        self._experiment_id = ""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()
        self._link(spec.tags)

    def run_id(self, timeout_s: float = 60.0) -> str | None:
        """Wait for the MLflow run's id; None while the server cannot be reached."""
        self._begun.wait(timeout_s)
        return self._run_id

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Record numbers at this time, `step` crops or pictures into the run."""
        self._put("metrics", dict(values), step)

    def tags(self, values: dict[str, str]) -> None:
        """Set tags of the run."""
        self._put("tags", dict(values), 0)
        self._link(values)

    def artifact(self, path: str, data: bytes) -> None:
        """Record a file, at `path` among the run's artifacts."""
        self._put("artifact", {"path": path, "data": data}, 0)

    def close(self, status: str = "FINISHED") -> None:
        """Send what is left and end the run; what cannot be sent is written to `local`."""
        self._put("tags", {"_status": status}, 0)
        self._queue.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():  # a server that neither answers nor refuses: better twice than never
            waiting = list(self._backlog)
            while not self._queue.empty():
                item = self._queue.get()
                if item is not None:
                    waiting.append(item)
            self._keep(waiting)

    def _link(self, tags: dict[str, str]) -> None:
        """Renew the links between all runs of a codec, once it is said which codec this run is of."""
        if lineage.FINGERPRINT in tags:
            self._put("links", {lineage.FINGERPRINT: tags[lineage.FINGERPRINT]}, 0)

    def _put(self, what: str, values: dict[str, Any], step: int) -> None:
        self._queue.put(_Item(what, values, step, int(time.time() * 1000)))

    def _work(self) -> None:
        self._try_send([])
        self._begun.set()
        closing = False
        while not closing:
            items = [self._queue.get()]
            while not self._queue.empty() and len(items) < 200:
                items.append(self._queue.get())
            closing = self._closing = None in items
            self._backlog += [item for item in items if item is not None]
            if closing or not self._offline or time.monotonic() >= self._retry_at:
                self._backlog = self._try_send(self._backlog)
        if self._backlog:
            self._keep(self._backlog)

    def _try_send(self, items: list[_Item]) -> list[_Item]:
        """Send items in their order; returns what could not be sent. An artifact that is refused holds nothing back."""
        left = list(items)
        aside: list[_Item] = []
        try:
            self._begin()
            while left:
                batch = _joined(left)
                if batch[0].what != "artifact":
                    self._send(batch)
                elif not self._send_artifact(batch):
                    aside += batch
                left = left[len(batch) :]
            self._offline = False
        except Exception as error:  # whatever the server, the network or the database raise must not reach the job
            if not self._offline:
                kind = type(error).__name__
                self._say(
                    f"MLflow at {redacted(self._uri)} cannot be reached ({kind}); going on, "
                    f"measurements are kept and go to {self._local} unless it comes back"
                )
            self._offline, self._retry_at = True, time.monotonic() + RETRY_EVERY_S
        return aside + left

    def _send_artifact(self, batch: list[_Item]) -> bool:
        """Whether an artifact was taken; where its store has refused one, it is left alone for a while."""
        if time.monotonic() < self._artifacts_at and not self._closing:
            return False
        try:
            self._send(batch)
        except Exception as error:  # whatever a store raises
            if not self._no_artifacts:
                self._say(
                    f"MLflow at {redacted(self._uri)} takes no artifacts ({type(error).__name__}: its artifact store "
                    f"refuses); going on, they go to {self._local} unless that is mended"
                )
            self._no_artifacts, self._artifacts_at = True, time.monotonic() + RETRY_EVERY_S
            return False
        return True

    def _begin(self) -> None:
        if self._client is not None:
            return
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        client = MlflowClient(self._uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            try:
                experiment_id = client.create_experiment(EXPERIMENT, artifact_location=_artifact_root(self._uri))
            except MlflowException:  # another run was quicker
                experiment = client.get_experiment_by_name(EXPERIMENT)
                if experiment is None:
                    raise
                experiment_id = experiment.experiment_id
        else:
            experiment_id = experiment.experiment_id
        self._experiment_id = experiment_id
        if self._run_id is None:
            run = client.create_run(experiment_id, run_name=self._spec.name, tags=self._spec.tags)
            params = [Param(k, str(v)[:6000]) for k, v in self._spec.params.items() if v is not None]
            client.log_batch(run.info.run_id, params=params)
            self._run_id = run.info.run_id
        else:
            client.update_run(self._run_id, status="RUNNING")
        self._client = client

    def _send(self, batch: list[_Item]) -> None:
        from mlflow.entities import Metric, RunTag

        client, run_id = self._client, self._run_id
        first = batch[0]
        if first.what == "metrics":
            metrics = [Metric(k, float(v), i.time_ms, i.step) for i in batch for k, v in i.values.items()]
            for start in range(0, len(metrics), 1000):
                client.log_batch(run_id, metrics=metrics[start : start + 1000])
        elif first.what == "tags":
            status = first.values.get("_status")
            tags = [RunTag(k, v) for k, v in first.values.items() if k != "_status"]
            if tags:
                client.log_batch(run_id, tags=tags)
            if status:
                client.set_terminated(run_id, status)
        elif first.what == "links":
            lineage.renew_notes(client, self._experiment_id, first.values[lineage.FINGERPRINT])
        else:
            path = Path(first.values["path"])
            with tempfile.TemporaryDirectory() as directory:
                file = Path(directory) / path.name
                file.write_bytes(first.values["data"])
                parent = str(path.parent)
                client.log_artifact(run_id, str(file), None if parent == "." else parent)

    def _keep(self, items: list[_Item]) -> None:
        """Write what could not be sent beside the job's own output; where that cannot be, it is said."""
        try:
            self._write_down(items)
        except Exception as error:
            self._say(f"what MLflow did not get could not be written to {self._local} either ({error})")

    def _write_down(self, items: list[_Item]) -> None:
        stamp = f"{int(time.time())}-{os.getpid()}"
        lines = [
            json.dumps({"time_ms": i.time_ms, "step": i.step, "what": i.what, **i.values})
            for i in items
            if i.what in ("metrics", "tags")
        ]
        directory = storage.join(self._local, "untracked")
        if lines:
            storage.write_bytes(
                storage.join(directory, f"measurements-{stamp}.jsonl"), "\n".join(lines).encode() + b"\n"
            )
        for item in items:
            if item.what == "artifact":
                storage.write_bytes(storage.join(directory, item.values["path"]), item.values["data"])


def _joined(items: list[_Item]) -> list[_Item]:
    """The longest run of metrics at the front, to be sent in one call; else the first item alone."""
    if items[0].what != "metrics":
        return items[:1]
    end = next((i for i, item in enumerate(items) if item.what != "metrics"), len(items))
    return items[:end]


def _artifact_root(uri: str) -> str | None:
    """Beside a sqlite file; a server decides for itself."""
    if uri.startswith("sqlite:///"):
        return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()
    return None
