"""What commands left behind: metrics in MLflow, the tables and the files of a compressed dataset."""

from __future__ import annotations

import io
import tarfile

import pandas as pd
from mlflow import MlflowClient

from pipelines.files import storage
from pipelines.tracking.tracker import EXPERIMENT


def recorded(tracking: str, metric: str = "loss") -> dict[int, float]:
    """Read a metric of each step in MLflow's only run, by crops seen; of a step that was done twice, the last."""
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, metric)
    return {m.step: m.value for m in sorted(history, key=lambda m: (m.step, m.timestamp))}


def read_table(out: str) -> pd.DataFrame:
    """Read the table of a compressed dataset, in the order of its keys."""
    frames = [
        pd.read_parquet(io.BytesIO(storage.read_bytes(f"{out}/{n}")))
        for n in storage.list_names(out)
        if n.endswith(".parquet")
    ]
    return pd.concat(frames, ignore_index=True).sort_values("key", ignore_index=True)


def read_files(out: str) -> dict[str, bytes]:
    """Read the bitstreams of all parts by key; a key that comes twice is an error."""
    found: dict[str, bytes] = {}
    for name in storage.list_names(out):
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(f"{out}/{name}"))) as tar:
                for info in tar:
                    if info.name.endswith(".crdf"):
                        member = tar.extractfile(info)
                        assert member is not None
                        assert info.name not in found
                        found[info.name] = member.read()
    return {name.removesuffix(".crdf"): data for name, data in found.items()}
