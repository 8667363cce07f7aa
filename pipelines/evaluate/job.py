"""`corrdiff evaluate`: real files of our codecs and of those that people know, on the same pictures, on Ray.

OUT/evaluation.json   what is evaluated; another evaluation there is refused
OUT/_rows/            a file for each picture and system, written when it is measured: a killed run goes on
OUT/_failed/          the same of those that could not be measured, which the next run tries again
OUT/_windows/         the parts of pictures that the report shows
OUT/results.parquet, results.csv, index.html
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff import __version__, metrics
from corrdiff.codec_directory import read_config
from corrdiff.errors import JobError, UsageError
from pipelines.display.progress import console
from pipelines.evaluate import anchors
from pipelines.evaluate import page as evaluate_report
from pipelines.evaluate.comparison import Comparison, whole_pictures
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.measure import FAILED, ROWS, Measurer, Place, System, stem
from pipelines.evaluate.page import Evaluation
from pipelines.files import storage
from pipelines.files.records import differences
from pipelines.files.storage import READERS
from pipelines.inputs import units
from pipelines.options import identity
from pipelines.runtime.resources import pools
from pipelines.runtime.session import ray_errors, ray_session
from pipelines.tracking.lineage import CODEC, FINGERPRINT, KIND, lineage_tags
from pipelines.tracking.tracker import RunSpec, Tracker, record_run, recorded_run, tracking_uri

IDENTITY = "evaluation.json"

SEGMENT = 4096
"""Pictures times systems of one Ray Data execution."""

COLUMNS = pa.schema([
    ("picture", pa.string()), ("system", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
    ("quality", pa.float64()), ("fidelity", pa.float64()), ("steps", pa.int32()), ("usual_steps", pa.bool_()),
    ("decoding", pa.string()), ("bytes", pa.int64()), ("bpp", pa.float64()), ("psnr_db", pa.float64()),
    ("ms_ssim", pa.float64()), ("texture_error", pa.float64()), ("lpips", pa.float64()),
    ("high_frequency", pa.float64()), ("encode_s_per_mpx", pa.float64()), ("decode_s_per_mpx", pa.float64()),
    ("encode_peak_mib", pa.float64()), ("decode_peak_mib", pa.float64()), ("machine", pa.string()),
    ("error", pa.string()),
])  # fmt: skip


class Progress(NamedTuple):
    """How far an evaluation is."""

    done: int
    """Pictures times systems."""
    total: int
    errors: int


class Finished(NamedTuple):
    """An evaluation that is done."""

    report: str
    """URI of the page."""
    comparisons: list[Comparison]
    errors: list[str]
    """Pictures that could not be measured, and why."""


def evaluate(images: str, out: str, codecs: Sequence[str], config: EvaluateConfig) -> Iterator[Progress | Finished]:
    """Measure, and draw the report; yields progress, and what came of it at the end.

    Raises:
        UsageError: no pictures, no codec, or `out` holds another evaluation.
        JobError: storage failed for long, or not one picture could be measured.
    """
    images = storage.absolute(images)
    out = storage.absolute(out)
    tracking_uri()  # refused before anything is written
    systems = name_systems(codecs, config)
    fingerprints = _claim(images, out, systems, config)
    places = _places(images, config)
    tracker = _begin(images, out, systems, fingerprints, config)
    status = "FAILED"
    try:
        with ray_session():
            yield from _measure(places, systems, out, config)
        table = _gather(out, [stem(place.key, system.name) for place in places for system in systems])
        if not whole_pictures(table):
            raise JobError(f"not one picture could be measured: {table['error'].dropna().iloc[0]}")
        evaluation = Evaluation(images, out, places, systems, fingerprints, table, config)
        finished = _finish(evaluation, tracker)
        status = "FINISHED"
    finally:
        tracker.close(status)
    yield finished


def _begin(
    images: str, out: str, systems: list[System], fingerprints: dict[str, str], config: EvaluateConfig
) -> Tracker:
    """One MLflow run, linked to the codecs and their training runs; an evaluation that goes on goes on with its run."""
    known = recorded_run(out)
    codecs = [s.codec for s in systems if s.codec]
    tags = {KIND: "evaluate", FINGERPRINT: ",".join(fingerprints.values()),
            CODEC: ",".join(codecs)}  # fmt: skip
    for i, codec in enumerate(codecs):
        tags |= lineage_tags(read_config(codec)[2], f"{i + 1}_" if i else "")
    params = {"images": images, "out": out, **dataclasses.asdict(config)}
    tracker = Tracker(tracking_uri(), RunSpec("evaluate", tags, params, known), out, console.print)
    run_id = tracker.run_id()
    if known is None and run_id is not None:
        record_run(out, run_id)
    return tracker


def name_systems(codecs: Sequence[str], config: EvaluateConfig) -> list[System]:
    """Codecs by the ends of their URIs, as far as that tells them apart; anchors by their own names."""
    uris = [storage.absolute(codec) for codec in dict.fromkeys(codecs)]
    parts = [[p for p in uri.split("/") if p and p != "codec"] or [uri] for uri in uris]
    names = uris
    for length in range(max(map(len, parts), default=0), 0, -1):
        short = ["/".join(p[-length:]) for p in parts]
        if len(set(short)) == len(short) and not {"phase1", "phase2", *config.anchors} & set(short):
            names = short
    ours = [System(name, uri) for name, uri in zip(names, uris, strict=True)]
    return ours + [System(name, None) for name in config.anchors]


def _claim(images: str, out: str, systems: list[System], config: EvaluateConfig) -> dict[str, str]:
    """Make sure that `out` is this evaluation's, or nobody's; the codecs' fingerprints."""
    fingerprints = {s.name: read_config(s.codec)[1] for s in systems if s.codec}
    # As JSON has it, so that it is the same when it is read again.
    mine = json.loads(json.dumps({"images": images, "codecs": fingerprints, **identity(config), **_means(config)}))
    uri = storage.join(out, IDENTITY)
    if storage.exists(uri):
        said = differences(storage.read_json(uri), mine)
        if said:
            raise UsageError(f"{out} holds another evaluation ({said}); choose another directory")
    else:
        storage.write_json(uri, mine)
    return fingerprints


def _means(config: EvaluateConfig) -> dict[str, Any]:
    """With what an evaluation measures: of two versions the rows would not belong together."""
    weights = metrics.lpips_weights(config.lpips_weights)
    return {
        "anchors": {name: anchors.description(name) for name in config.anchors}, "corrdiff": __version__,
        "lpips": weights.name if weights else None,
    }  # fmt: skip


def _places(images: str, config: EvaluateConfig) -> list[Place]:
    """The pictures, of shards and tables too. Raises `UsageError` where there are none."""
    every = ((key, unit) for unit in units.plan_units(images, config.column, 1) for key in _keys(unit))
    found = list(itertools.islice(every, config.limit))
    if not found:
        raise UsageError(units.nothing_at(images))
    shown = set(np.linspace(0, len(found) - 1, min(config.show, len(found))).astype(int).tolist())
    return [Place(key, unit, i in shown) for i, (key, unit) in enumerate(found)]


def _keys(unit: units.Unit) -> Iterator[str]:
    return iter(unit.keys) if unit.kind == "files" else (found.key for found in units.read_pictures(unit))


def _measure(places: list[Place], systems: list[System], out: str, config: EvaluateConfig) -> Iterator[Progress]:
    """Whatever has no rows yet; yields after each picture and system."""
    import ray.data

    stages = pools(config.device, config.workers)
    there = set(storage.list_names(storage.join(out, ROWS)))
    every = [(place, system) for place in places for system in systems]
    missing = [(p, s) for p, s in every if f"{stem(p.key, s.name)}.json" not in there]
    done, errors = len(every) - len(missing), 0
    yield Progress(done, len(every), errors)
    for i in range(0, len(missing), SEGMENT):
        items = [{"place": place, "system": system} for place, system in missing[i : i + SEGMENT]]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
            Measurer, fn_constructor_args=(out, config, stages.device), **stages.networks
        )
        dataset.context.target_max_block_size = 1  # each comes out as soon as it is measured
        with ray_errors():
            for row in dataset.iter_rows():
                done, errors = done + 1, errors + row["errors"]
                yield Progress(done, len(every), errors)


def _gather(out: str, stems: list[str]) -> pd.DataFrame:
    """All rows, in the order of pictures and systems."""

    measured = set(storage.list_names(storage.join(out, ROWS)))

    def read(name: str) -> Any:
        file = f"{name}.json"
        return storage.read_json(storage.join(out, ROWS if file in measured else FAILED, file))

    with ThreadPoolExecutor(READERS) as pool:
        rows = [row for some in pool.map(read, stems) for row in some]
    return pd.DataFrame(rows, columns=COLUMNS.names)


def _finish(evaluation: Evaluation, tracker: Tracker) -> Finished:
    """Tables, page, and everything in MLflow."""
    out, table = evaluation.out, evaluation.table
    curves = evaluate_report.curves_of(evaluation)
    comparisons = evaluate_report.compare_all(curves, evaluation.config.reference)
    files = {
        "results.parquet": _parquet(table), "results.csv": table.to_csv(index=False).encode(),
        "index.html": evaluate_report.page(evaluation, curves, comparisons).encode(),
    }  # fmt: skip
    for name, data in files.items():
        storage.write_bytes(storage.join(out, name), data)
        tracker.artifact(name, data)
    for c in comparisons:
        if c.rate is not None:
            rates = "" if c.bpp_range is None else f"/{c.bpp_range[0]:g}_to_{c.bpp_range[1]:g}_bpp"
            name = f"against_{evaluation.config.reference}/{c.metric}{rates}/{_metric_name(c.curve)}"
            tracker.metrics({f"bd_rate_{name}": c.rate.value, f"overlap_{name}": c.overlap})
    return Finished(storage.join(out, "index.html"), comparisons, evaluate_report.failures(table))


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(table, COLUMNS, preserve_index=False), buffer)
    return buffer.getvalue()


def _metric_name(curve: str) -> str:
    """In the characters that MLflow allows."""
    return re.sub(r"[^\w\-. /:]", "_", curve)
