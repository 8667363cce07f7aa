"""Under which names the code logs: in MLflow and in Ray's metrics.

The code that logs is run, on numbers that are made up, with stand-ins for MLflow, for Ray and for what takes long. What
is logged under conditions alone (on a GPU, with LPIPS, with a target) is logged here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from corrdiff import metrics
from corrdiff.config import BUILTIN
from corrdiff.metrics import METRICS, SET_METRICS
from pipelines.compress import job as compress_job
from pipelines.compress import report as compress_report
from pipelines.compress.claim import CompressJob
from pipelines.compress.config import CompressConfig
from pipelines.compress.finish import Shown
from pipelines.compress.rate import Rate
from pipelines.compress.tally import Tally
from pipelines.dataset.format import Plan, Stage, columns
from pipelines.dataset.rows import Rows
from pipelines.dataset.summary import Summary
from pipelines.evaluate import job as evaluate_job
from pipelines.evaluate.comparison import MetricPoints, SystemCurve
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.page import Evaluation
from pipelines.tracking import lineage, run_log
from pipelines.train import observer, validation
from pipelines.train.board import Board
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.costs import Costs
from pipelines.train.crops import Crops
from pipelines.train.phases.table import PHASES
from pipelines.train.trainer import Said, StepResult
from tests.support.drawn import draw

SIDE = 192
"""Of a crop that is large enough for every metric."""


@dataclasses.dataclass
class Names:
    """What was logged, and the stand-in for the tracker that it was logged to."""

    metrics_seen: set[str] = dataclasses.field(default_factory=set)
    tags_seen: set[str] = dataclasses.field(default_factory=set)
    gauges_seen: set[str] = dataclasses.field(default_factory=set)

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.metrics_seen |= set(values)

    def artifact(self, path: str, data: bytes) -> None:
        pass

    def close(self, status: str) -> None:
        pass

    def begin(self, uri: str, spec: Any, local: str, say: object) -> Names:
        """In the place of the class `Tracker`."""
        self.tags_seen |= set(spec.tags)
        return self

    def gauge(self, name: str, description: str, tag_keys: tuple[str, ...]) -> mock.Mock:
        """In the place of Ray's class `Gauge`."""
        self.gauges_seen.add(f"{name} ({', '.join(tag_keys)})")
        return mock.Mock()


def tags() -> list[str]:
    """Tags of all kinds of runs; those that lead to a codec's trainings, for a first and a second codec."""
    trainings = {f"{phase}_mlflow_run": "" for phase in PHASES}
    known = {lineage.KIND, lineage.CODEC, lineage.FINGERPRINT, lineage.NOTE}
    known |= lineage.lineage_tags(trainings).keys() | lineage.lineage_tags(trainings, "2_").keys()
    return sorted(known.union(*(_training(phase).tags_seen for phase in PHASES)))


def training_metrics() -> list[str]:
    """Metrics of all phases, and of the held-out crops."""
    return sorted(_validation().union(*(_training(phase).metrics_seen for phase in PHASES)))


def compression_metrics() -> list[str]:
    """Metrics of a compression with a target."""
    return sorted(_compression().metrics_seen)


def evaluation_metrics() -> list[str]:
    """Metrics of an evaluation; CURVE stands for a codec and how its files are decoded."""
    return sorted(_evaluation().metrics_seen)


def gauges() -> list[str]:
    """Names in Ray's metrics, which prefixes them with ray_, and their labels."""
    return sorted(_compression().gauges_seen.union(*(_training(phase).gauges_seen for phase in PHASES)))


@contextlib.contextmanager
def _stand_ins(names: Names) -> Iterator[str]:
    """No Ray and no MLflow; a directory for what is written."""

    def remote(function: Any) -> SimpleNamespace:
        task = SimpleNamespace(remote=function)
        task.options = lambda **_: task
        return task

    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(run_log, "logs_directory", lambda: Path(directory)),
        mock.patch("ray.get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "job")),
        mock.patch("ray.util.metrics.Gauge", names.gauge),
        mock.patch("ray.remote", remote),
        mock.patch("ray.get", lambda value: value),
        mock.patch("torch.cuda.utilization", lambda: 50),
    ):
        yield directory


@functools.cache
def _training(phase: PhaseName) -> Names:
    names = Names()
    with _stand_ins(names) as directory, mock.patch.object(observer, "Tracker", names.begin):
        config = TrainConfig(shards="shards", lpips_weight=0.5, init_from=BUILTIN)
        board = Board(phase, "run")
        remote_board: Any = mock.Mock()
        remote_board.spend.remote = board.spend
        watching = observer.Observer(remote_board, "", config, PHASES[phase], directory)
        terms = PHASES[phase].terms
        trainer: Any = SimpleNamespace(
            term_names=terms, device=torch.device("cuda"),
            progress=SimpleNamespace(crops_seen=config.crops_total, cursor=SimpleNamespace(epoch=0)),
        )  # fmt: skip
        watching.window = [(StepResult([1.0] * len(terms), 1.0, 1.0, Said()), 1, terms)]
        watching.after_window(trainer, Costs(1, 1.0, 1.0, 1, 1, 1.0, 1.0, 1.0, 1))
    return names


@functools.cache
def _validation() -> set[str]:
    """Of held-out crops, and of training crops where none are held out."""
    crop = draw(SIDE, SIDE)
    codec: Any = SimpleNamespace(
        compress_batch=lambda originals, settings: [
            SimpleNamespace(data=b"", bpp=1.0, reconstruction=255 - crop) for _ in originals
        ],
        decompress_batch=lambda files, decoding="corrected": [255 - crop for _ in files],
    )
    alone = SimpleNamespace(
        get_rank=lambda: 0, get_world_size=lambda: 1, all_gather_object=lambda out, mine: out.__setitem__(0, mine)
    )
    networks: Any = {metrics.LPIPS.name: mock.Mock(return_value=torch.zeros(1))}
    found: set[str] = set()
    for held_out in (True, False):
        with (
            mock.patch.object(validation, "has_validation", lambda uri, held_out=held_out: held_out),
            mock.patch.object(validation, "read_manifest", lambda uri: SimpleNamespace(shards=[mock.Mock(count=1)])),
            mock.patch.object(validation, "read_some", lambda *_: [crop]),
            mock.patch.object(validation, "dist", alone),
        ):
            found |= set(
                validation.measure(
                    codec, validation.read_held_out(Crops("shards", mock.Mock(shards=[mock.Mock(count=1)]))), networks
                )[0]
            )
    return found


@functools.cache
def _compression() -> Names:
    names = Names()
    row = {name: 1.0 for name in columns().names if pa.types.is_floating(columns().field(name).type)}
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(Rows(scratch)) as rows:
        rows.add(pa.Table.from_pylist([{**row, "status": "ok"}], columns()))
        percentiles = rows.percentiles()
    summary = Summary(1, 0, 1, 1, 8.0, percentiles, {}, {}, "fingerprint")
    plan = Plan({"codec": "fingerprint"}, (Stage("_plan/0", 1, 1),))

    def run(job: CompressJob, numbers: list[int], tally: Tally) -> Iterator[None]:
        tally.pixels += 1
        yield None

    with (
        _stand_ins(names) as directory,
        mock.patch.object(compress_report, "begin", lambda *_: names),
        mock.patch.object(compress_report, "_draw_worst", lambda *_: None),
        mock.patch.object(compress_job, "finish", lambda _: (summary, Shown({}, [], []))),
        mock.patch.object(compress_job, "find_rate", lambda _: Rate(1.0, 4, 1.0, [0.0], 1, 1.0, 30.0)),
        mock.patch.object(compress_job, "_run", run),
        mock.patch.object(compress_job, "PACE_EVERY_S", 0.0),
    ):
        job = CompressJob("images", directory, BUILTIN, plan, CompressConfig(target_bpp=1.0))
        for _ in compress_job._compress(job):
            pass
    return names


@functools.cache
def _evaluation() -> Names:
    names = Names()
    config = EvaluateConfig()
    rising = np.linspace(0.05, 0.95, 10)[:, None]
    points = {metric.name: MetricPoints(rising, rising) for metric in (*METRICS, *SET_METRICS)}
    curves = [
        SystemCurve("CURVE", "codec", "corrected", 1.0, list(range(10)), points, {}),
        SystemCurve(config.reference, config.reference, None, None, list(range(10)), points, {}),
    ]
    with (
        tempfile.TemporaryDirectory() as directory,
        mock.patch.object(evaluate_job, "curves_of", lambda _: curves),
        mock.patch.object(evaluate_job, "page", lambda *_: ""),
    ):
        table, sets = (pd.DataFrame(columns=s.names) for s in (evaluate_job.COLUMNS, evaluate_job.SET_COLUMNS))
        evaluate_job._finish(Evaluation("images", directory, [], [], {}, table, sets, config, {}), names)
    return names
