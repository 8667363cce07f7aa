"""`corrdiff evaluate`: real files of our codecs and of any others, on the same pictures, on Ray.

    pictures x systems -> code (coding.py; our codecs on GPUs where there are some) -> measure (measure.py, on cores)
    points of curves -> metrics of sets (sets.py) -> curves and comparisons (comparison.py) -> the page (page.py)

OUT/evaluation.json   what is evaluated; another evaluation there is refused
OUT/_rows/            a file for each picture and system, written when it is measured: a killed run goes on
OUT/_failed/          the same of those that could not be measured, which the next run tries again
OUT/_samples/         what the metrics of sets need of each
OUT/_windows/         the parts of pictures that the report shows
OUT/_checkpoints/     codecs of a training run that is evaluated, one a checkpoint
OUT/results.parquet, results.csv, sets.csv, index.html
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff import __version__
from corrdiff.codec_directory import read_config
from corrdiff.errors import JobError, UsageError
from corrdiff.metrics import METRICS, SET_METRICS, missing
from pipelines.display.progress import Progress, console
from pipelines.evaluate.comparison import POINT, Comparison, whole_pictures
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.measure import FAILED, PEAKS, ROWS, SECONDS, CodecStage, Measurer, Place, stem
from pipelines.evaluate.page import Evaluation, compare_all, curves_of, failures, page
from pipelines.evaluate.sets import measure_set, set_points
from pipelines.evaluate.systems import System, description, systems_of
from pipelines.files import storage
from pipelines.files.records import claim
from pipelines.files.storage import READERS
from pipelines.inputs import units
from pipelines.options import defaults, identity
from pipelines.runtime.resources import pools
from pipelines.runtime.session import ray_errors, ray_session
from pipelines.runtime.stages import one_block_each, rows_as_they_come
from pipelines.tracking.lineage import CODEC, FINGERPRINT, KIND, lineage_tags
from pipelines.tracking.tracker import RunSpec, Tracker, record_run, recorded_run, tracking_uri

IDENTITY = "evaluation.json"

SEGMENT = 4096
"""Pictures times systems of one Ray Data execution."""

COLUMNS = pa.schema([
    ("picture", pa.string()), ("system", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
    ("quality", pa.float64()), ("fidelity", pa.float64()), ("steps", pa.int32()), ("usual_steps", pa.bool_()),
    ("decoding", pa.string()), ("bytes", pa.int64()), ("bpp", pa.float64()),
    *((name, pa.float64()) for name in (*(metric.name for metric in METRICS), *SECONDS, *PEAKS)),
    ("machine", pa.string()), ("error", pa.string()),
])  # fmt: skip

SET_COLUMNS = pa.schema([
    *((name, COLUMNS.field(name).type) for name in POINT), *((metric.name, pa.float64()) for metric in SET_METRICS),
])  # fmt: skip


class Finished(NamedTuple):
    """An evaluation that is done."""

    report: str
    """URI of the page."""
    comparisons: list[Comparison]
    errors: list[str]
    """Pictures that could not be measured, and why."""
    left_out: dict[str, int]
    """Files that are there and are no pictures, by reason."""


def evaluate(
    images: str, out: str, codecs: Sequence[str], config: EvaluateConfig
) -> Generator[Progress, None, Finished]:
    """Measure, and draw the report; yields progress, and returns what came of it.

    Raises:
        UsageError: no pictures, no codec, or `out` holds another evaluation.
        JobError: storage failed for long, or not one picture could be measured.
    """
    images = storage.absolute(images)
    out = storage.absolute(out)
    tracking_uri()  # refused before anything is written
    systems = systems_of(codecs, config)
    descriptions = _claim(images, out, systems, config)
    left_out: Counter[str] = Counter()
    places = _places(images, config, left_out)
    tracker = _begin(images, out, systems, config)
    status = "FAILED"
    try:
        with ray_session():
            yield from _measure(places, systems, out, config)
            table = _gather(out, [stem(place.key, system.name) for place in places for system in systems])
            if not whole_pictures(table):
                raise JobError(f"not one picture could be measured: {table['error'].dropna().iloc[0]}")
            sets = yield from _measure_sets(table, out)
        evaluation = Evaluation(
            images, out, places, systems, descriptions, table, sets, config, _crops(systems), left_out
        )
        finished = _finish(evaluation, tracker)
        status = "FINISHED"
        return finished
    finally:
        tracker.close(status)


def _begin(images: str, out: str, systems: list[System], config: EvaluateConfig) -> Tracker:
    """Begin one MLflow run, linked to the codecs and their training runs, or go on with that of an earlier try."""
    known = recorded_run(out)
    codecs = [system.source for system in systems if system.ours]
    configs = [read_config(codec) for codec in codecs]
    fingerprints = [system.fingerprint for system in systems if system.ours]
    tags = {KIND: "evaluate", FINGERPRINT: ",".join(fingerprints), CODEC: ",".join(codecs)}
    for i, read in enumerate(configs):
        tags |= lineage_tags(read[2], f"{i + 1}_" if i else "")
    params = {"images": images, "out": out, **dataclasses.asdict(config)}
    tracker = Tracker(tracking_uri(), RunSpec("evaluate", tags, params, known), out, console.print)
    run_id = tracker.run_id()
    if known is None and run_id is not None:
        record_run(out, run_id)
    return tracker


def _claim(images: str, out: str, systems: list[System], config: EvaluateConfig) -> dict[str, str]:
    """Make `out` this evaluation's, or refuse it; returns what makes the files of each system.

    Of two versions of what measures the rows would not belong together.
    """
    descriptions = {system.name: description(system) for system in systems}
    for system in systems:
        if system.ours:
            codec = read_config(system.source)[0]
            for settings in config.settings():
                codec.check(settings)
    made_by = descriptions | {system.name: system.fingerprint for system in systems if system.ours}
    measured = [metric.name for metric in (*METRICS, *SET_METRICS) if not missing(metric, config.weights)]
    record = {"identity": {
        "images": images, **identity(config), "systems": made_by, "metrics": measured, "corrdiff": __version__,
    }}  # fmt: skip
    claim(storage.join(out, IDENTITY), record, f"{out} holds another evaluation", absent=defaults(EvaluateConfig))
    return descriptions


def _crops(systems: list[System]) -> dict[str, int]:
    """How many crops each checkpoint of a training run had seen, over all its phases, by system."""
    known = {system.name: read_config(system.source)[2] for system in systems if system.run}
    return {
        name: sum(int(value) for key, value in provenance.items() if key.endswith("_crops"))
        for name, provenance in known.items()
    }


def _places(images: str, config: EvaluateConfig, left_out: Counter[str]) -> list[Place]:
    """The pictures, of shards and tables too; `left_out` is told, by reason, of what is passed over on the way.

    Raises `UsageError` where there are none.
    """
    planned = units.plan_units(images, config.column, 1, left_out)
    every = ((key, unit) for unit in planned for key in _keys(unit, left_out))
    found = list(itertools.islice(every, config.limit))
    if not found:
        raise UsageError(units.nothing_at(images, left_out))
    shown = set(np.linspace(0, len(found) - 1, min(config.show, len(found))).astype(int).tolist())
    return [Place(key, unit, i in shown, i) for i, (key, unit) in enumerate(found)]


def _keys(unit: units.Unit, left_out: Counter[str]) -> Iterator[str]:
    return iter(unit.keys) if unit.keyed else (found.key for found in units.read_pictures(unit, 1, left_out))


def _measure(places: list[Place], systems: list[System], out: str, config: EvaluateConfig) -> Iterator[Progress]:
    """Measure whatever has no rows yet; yields after each picture and system."""
    stages = pools(config.device, config.workers)
    there = set(storage.list_names(storage.join(out, ROWS)))
    every = [(place, system) for place in places for system in systems]
    missing = [(p, s) for p, s in every if f"{stem(p.key, s.name)}.json" not in there]
    done, errors = len(every) - len(missing), 0
    yield Progress(done, len(every), "measurements")
    for i in range(0, len(missing), SEGMENT):
        items = [{"place": place, "system": system} for place, system in missing[i : i + SEGMENT]]
        waiting, cores = one_block_each(items), stages.networks
        if stages.device == "cuda":
            waiting, cores = waiting.map(CodecStage, fn_constructor_args=(config, "cuda"), **cores), stages.coders
        measured = waiting.map(Measurer, fn_constructor_args=(out, config, len(places)), **cores)
        with ray_errors():
            for row in rows_as_they_come(measured):
                done, errors = done + 1, errors + row["errors"]
                yield Progress(done, len(every), "measurements", f"{errors} failed" if errors else "")


def _measure_sets(table: pd.DataFrame, out: str) -> Generator[Progress, None, pd.DataFrame]:
    """Compute the metrics of sets at every point of every curve; yields after each, and returns a row a point."""
    rows: list[dict[str, Any]] = []
    points = list(set_points(table))
    measured = one_block_each([{"number": i, "point": point} for i, point in enumerate(points)]).map(
        lambda row: {"number": row["number"], "row": json.dumps(measure_set(out, row["point"]))}, num_cpus=1
    )
    with ray_errors():
        for row in rows_as_they_come(measured):
            rows.append(row)
            yield Progress(len(rows), len(points), "points of sets")
    rows.sort(key=lambda row: int(row["number"]))
    return numbers(pd.DataFrame([json.loads(row["row"]) for row in rows], columns=SET_COLUMNS.names), SET_COLUMNS)


def _gather(out: str, stems: list[str]) -> pd.DataFrame:
    """Read all rows, in the order of pictures and systems."""
    measured = set(storage.list_names(storage.join(out, ROWS)))

    def read(name: str) -> Any:
        file = f"{name}.json"
        return storage.read_json(storage.join(out, ROWS if file in measured else FAILED, file))

    with ThreadPoolExecutor(READERS) as pool:
        rows = [row for of_one in pool.map(read, stems) for row in of_one]
    return numbers(pd.DataFrame(rows, columns=COLUMNS.names), COLUMNS)


def numbers(table: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """Make columns of floating point that, where no row has a value, too."""
    floating = [field.name for field in schema if pa.types.is_floating(field.type)]
    return table.astype(dict.fromkeys(floating, "float64"))


def _finish(evaluation: Evaluation, tracker: Tracker) -> Finished:
    """Write tables and page, and everything to MLflow."""
    out, table = evaluation.out, evaluation.table
    curves = curves_of(evaluation)
    compared = compare_all(curves, evaluation.config.reference)
    files = {
        "results.parquet": _parquet(table), "results.csv": table.to_csv(index=False).encode(),
        "sets.csv": evaluation.sets.to_csv(index=False).encode(),
        "index.html": page(evaluation, curves, compared).encode(),
    }  # fmt: skip
    for name, data in files.items():
        storage.write_bytes(storage.join(out, name), data)
        tracker.artifact(name, data)
    for c in compared.with_reference:
        if c.rate is not None:
            rates = "" if c.bpp_range is None else f"/{c.bpp_range[0]:g}_to_{c.bpp_range[1]:g}_bpp"
            name = f"against_{evaluation.config.reference}/{c.metric}{rates}/{_metric_name(c.curve)}"
            tracker.metrics({f"bd_rate_{name}": c.rate.value, f"overlap_{name}": c.overlap})
    tracker.metrics({"left_out": float(sum(evaluation.left_out.values()))})
    report = storage.join(out, "index.html")
    return Finished(report, compared.with_reference, failures(table), dict(evaluation.left_out))


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(table, COLUMNS, preserve_index=False), buffer)
    return buffer.getvalue()


def _metric_name(curve: str) -> str:
    """The name of a curve in the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /:]", "_", curve)
