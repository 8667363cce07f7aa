"""A compressed dataset, or some pictures of it -> pictures, in parallel on Ray Data.

OUT/_decompressed/what.json    the dataset and the format: another is refused
OUT/_decompressed/00000        written when a unit's pictures are all there; running again does the others
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from typing import Any

from pipelines.dataset import format as compressed
from pipelines.decompress.config import DecompressConfig
from pipelines.decompress.stages import DecompressJob, decoded, open_dataset, save_portion
from pipelines.display.progress import Progress
from pipelines.files import storage
from pipelines.files.records import claim
from pipelines.options import defaults, identity
from pipelines.runtime.resources import pools
from pipelines.runtime.session import ray_errors, ray_session
from pipelines.runtime.stages import rows_as_they_come

DONE = "_decompressed"
KEYS_A_ROW = 64


def decompress_dataset(
    dataset: str, out: str, codec: str, config: DecompressConfig, keys: Sequence[str] = ()
) -> Generator[Progress, None, int]:
    """Every picture of a compressed dataset, or those of some keys -> files or shards.

    Yields progress, and returns how many pictures there were.

    Raises:
        UsageError: no compressed dataset, another codec's, or `out` holds something else.
        JobError: a part is missing or damaged.
    """
    job, out = open_dataset(dataset, codec, config), storage.absolute(out)
    rows, total = _of_keys(job, keys) if keys else _of_units(job, out)
    pictures = 0
    yield Progress(pictures, total, "pictures")
    if not rows:
        return pictures
    left: dict[int, int] = {}
    with ray_session(), ray_errors():
        for row in rows_as_they_come(_saved(job, out, rows)):
            pictures += row["pictures"]
            unit = row["unit"]
            left[unit] = left.get(unit, row["portions"]) - 1
            if not left[unit] and not keys:
                storage.write_bytes(storage.join(out, DONE, f"{unit:05d}"), b"")
            yield Progress(pictures, total, "pictures")
    return pictures


def _of_keys(job: DecompressJob, keys: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """Rows of some members each, and how many pictures they come to."""
    found = compressed.find(job.dataset, list(dict.fromkeys(keys)))
    runs = [found[i : i + KEYS_A_ROW] for i in range(0, len(found), KEYS_A_ROW)]
    return [{"unit": n, "members": json.dumps(members)} for n, members in enumerate(runs)], len(found)


def _of_units(job: DecompressJob, out: str) -> tuple[list[dict[str, Any]], int]:
    """Rows of the units that are not done yet, and how many pictures they come to."""
    what = {"identity": {"dataset": job.plan.directory, **identity(job.config)}}
    claim(storage.join(out, DONE, "what.json"), what, f"{out} holds other pictures", absent=defaults(DecompressConfig))
    done = set(storage.list_names(storage.join(out, DONE)))
    rows = [{"unit": unit, "members": ""} for unit in range(job.plan.units) if f"{unit:05d}" not in done]
    skipped = compressed.read_records(job.dataset, [u for u in range(job.plan.units) if f"{u:05d}" in done])
    return rows, job.pictures - sum(r.pictures - r.failures for r in skipped)


def _saved(job: DecompressJob, out: str, rows: list[dict[str, Any]]) -> Any:
    """A Ray dataset of the portions whose pictures are saved."""
    stages = pools(job.config.device, job.config.workers)
    return decoded(job, rows, stages).map(
        save_portion, **stages.tasks,
        fn_kwargs={"out": out, "kind": job.config.format, "shards": job.config.shards},
    )  # fmt: skip
