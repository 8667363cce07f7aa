"""A compressed dataset, or some pictures of it -> pictures, in parallel on Ray Data.

OUT/_decompressed/what.json    the dataset and the format: another is refused
OUT/_decompressed/00000        written when a unit's pictures are all there; running again does the others
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from corrdiff.codec_directory import read_config
from corrdiff.errors import UsageError
from pipelines.dataset import format as compressed
from pipelines.decompress import stages as decompress_stages
from pipelines.decompress.config import DecompressConfig
from pipelines.files import storage
from pipelines.files.records import differences
from pipelines.runtime.resources import pools
from pipelines.runtime.session import ray_errors, ray_session

DONE = "_decompressed"
KEYS_A_ROW = 64


class Progress(NamedTuple):
    """So far in this run."""

    pictures_done: int
    pictures_total: int


def decompress_dataset(
    dataset: str, out: str, codec: str, config: DecompressConfig, keys: Sequence[str] = ()
) -> Iterator[Progress]:
    """Every picture of a compressed dataset, or those of some keys -> files or shards; yields progress.

    Raises:
        UsageError: no compressed dataset, another codec's, or `out` holds something else.
        JobError: a part is missing or damaged.
    """
    dataset, out, codec = storage.absolute(dataset), storage.absolute(out), storage.absolute(codec)
    plan, summary = compressed.read_complete(dataset)
    compressed.check_codec(dataset, plan, codec, read_config(codec)[1])
    if keys:
        found = compressed.find(dataset, list(dict.fromkeys(keys)))
        some = [found[i : i + KEYS_A_ROW] for i in range(0, len(found), KEYS_A_ROW)]
        rows = [{"unit": n, "members": json.dumps(members)} for n, members in enumerate(some)]
        yield from _run(rows, len(found), dataset, out, codec, config, marks=False)
        return
    what = {"dataset": plan.directory, "format": config.format, "shards": config.shards}
    uri = storage.join(out, DONE, "what.json")
    if not storage.create_bytes(uri, storage.to_json(what)) and (said := differences(storage.read_json(uri), what)):
        raise UsageError(f"{out} holds other pictures ({said}); choose another directory")
    done = set(storage.list_names(storage.join(out, DONE)))
    rows = [{"unit": unit, "members": ""} for unit in range(plan.units) if f"{unit:05d}" not in done]
    skipped = compressed.read_records(dataset, [u for u in range(plan.units) if f"{u:05d}" in done])
    total = summary["pictures"] - summary["failures"] - sum(r.pictures - r.failures for r in skipped)
    yield from _run(rows, total, dataset, out, codec, config, marks=True)


def _run(
    rows: list[dict[str, Any]], total: int, dataset: str, out: str, codec: str, config: DecompressConfig,
    marks: bool,
) -> Iterator[Progress]:  # fmt: skip
    pictures = 0
    yield Progress(pictures, total)
    if not rows:
        return
    chunks: dict[int, int] = {}
    with ray_session(), ray_errors():
        stages = pools(config.device, config.workers)
        saved = decompress_stages.decoded(rows, dataset, codec, config, stages).map(
            decompress_stages.save_chunk, **stages.tasks,
            fn_kwargs={"out": out, "kind": config.format, "shards": config.shards},
        )  # fmt: skip
        for row in saved.iter_rows():
            pictures += row["pictures"]
            unit = row["unit"]
            chunks[unit] = chunks.get(unit, row["chunks"]) - 1
            if not chunks[unit] and marks:
                storage.write_bytes(storage.join(out, DONE, f"{unit:05d}"), b"")
            yield Progress(pictures, total)
