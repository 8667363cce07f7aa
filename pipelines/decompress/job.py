"""A compressed dataset, or some pictures of it -> pictures, in parallel on Ray Data.

OUT/_decompressed/what.json    the dataset and the format: another is refused
OUT/_decompressed/00000        written when a unit's pictures are all there; running again does the others
OUT/_decompressed/of-00012     so many units have been begun with; more of them come where the dataset has grown

What was in OUT before units were begun with is none of ours: where a picture of them would be called the same, the job
is refused before it begins.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable, Sequence
from typing import Any

from corrdiff.errors import UsageError
from corrdiff.uris import scheme
from pipelines.dataset.index import all_keys, find
from pipelines.dataset.units import read_records
from pipelines.decompress.config import DecompressConfig
from pipelines.decompress.save import LONGEST_NAME_BYTES, SHARD, file_name, leads_out, longest_part, save_portion
from pipelines.decompress.stages import DecompressJob, decoded, open_dataset
from pipelines.display.progress import Progress
from pipelines.files import storage
from pipelines.files.listing import walk
from pipelines.files.records import claim
from pipelines.options import defaults, identity
from pipelines.runtime.resources import pools
from pipelines.runtime.session import ray_errors, ray_session
from pipelines.runtime.stages import rows_as_they_come

DONE, WHAT = "_decompressed", "what.json"
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
    if out == job.dataset or out.startswith(f"{job.dataset}/"):
        raise UsageError(f"{out} lies in the compressed dataset; choose another directory")
    rows, total = _of_keys(job, out, keys) if keys else _of_units(job, out)
    pictures = 0
    yield Progress(pictures, total, "pictures")
    if not rows:
        return pictures
    left: dict[int, int] = {}
    with ray_session(), ray_errors():
        for row in rows_as_they_come(_saved(job, out, rows, config.overwrite or not keys)):
            pictures += row["pictures"]
            unit = row["unit"]
            left[unit] = left.get(unit, row["portions"]) - 1
            if not left[unit] and not keys:
                storage.write_bytes(storage.join(_done(out), f"{unit:05d}"), b"")
            yield Progress(pictures, total, "pictures")
    return pictures


def _of_keys(job: DecompressJob, out: str, keys: Sequence[str]) -> tuple[list[dict[str, Any]], int]:
    """Rows of some members each, and how many pictures they come to."""
    found = find(job.dataset, list(dict.fromkeys(keys)))
    _check_names((member.key for member in found), out, job.config)
    runs = [found[i : i + KEYS_A_ROW] for i in range(0, len(found), KEYS_A_ROW)]
    return [{"unit": n, "members": json.dumps(members)} for n, members in enumerate(runs)], len(found)


def _of_units(job: DecompressJob, out: str) -> tuple[list[dict[str, Any]], int]:
    """Rows of the units that are not done yet, and how many pictures they come to."""
    what = {"identity": {"dataset": job.plan.name, **identity(job.config)}}
    record, units = storage.join(_done(out), WHAT), job.plan.units
    if _begun(job, out) < units:
        names = _there(out)
        begun = _begun(job, out)  # an equal job that has begun since has written nothing before that
        if begun < units:
            _check_names(all_keys(job.dataset, begun), out, job.config)
            _check_free(job, names, out, begun)
    claim(record, what, f"{out} holds other pictures", absent=defaults(DecompressConfig))
    storage.create_bytes(storage.join(_done(out), f"of-{units:05d}"), b"")
    done = set(storage.list_names(_done(out)))
    rows = [{"unit": unit, "members": ""} for unit in range(units) if f"{unit:05d}" not in done]
    skipped = read_records(job.dataset, [u for u in range(units) if f"{u:05d}" in done])
    return rows, job.pictures - sum(r.pictures - r.failures for r in skipped)


def _begun(job: DecompressJob, out: str) -> int:
    """How many units have been begun with: what is called as their pictures is this job's."""
    numbers = [
        int(name[1]) for name in map(re.compile(r"of-(\d{5,})").fullmatch, storage.list_names(_done(out))) if name
    ]
    if not numbers and storage.exists(storage.join(_done(out), WHAT)):
        return job.plan.stages[0].units  # begun by an older version, or just now
    return max(numbers, default=0)


def _done(out: str) -> str:
    return storage.join(out, DONE)


def _there(out: str) -> set[str]:
    """Names of all files under a directory; none where there is none."""
    return {found.name for found in walk(out)} if storage.exists(out) else set()


def _check_free(job: DecompressJob, names: set[str], out: str, begun: int) -> None:
    """Raises `UsageError` where a file that is there before units are begun with is called as one of theirs."""
    if not begun and any(name.startswith(f"{DONE}/") for name in names):
        raise UsageError(f"{out} holds {DONE} of a job that is not known; choose another directory")
    if job.config.overwrite or not names:
        return
    if job.config.shards:
        shards = filter(None, map(SHARD.fullmatch, sorted(names)))
        taken = next((shard[0] for shard in shards if int(shard[1]) >= begun), None)
    else:
        written = (file_name(key, job.config.format) for key in all_keys(job.dataset, begun))
        taken = next((name for name in written if name in names), None)
    if taken is not None:
        raise UsageError(
            f"{storage.join(out, taken)} exists, and is none of this job's; choose another directory, or say "
            "--overwrite"
        )


def _check_names(keys: Iterable[str], out: str, config: DecompressConfig) -> None:
    """Raises `UsageError` where a key can be no file's name in `out`."""
    if config.shards:
        return
    for key in keys:
        name = file_name(key, config.format)
        if leads_out(name) or (scheme(out) is None and longest_part(name) > LONGEST_NAME_BYTES):
            why = "leads out of the directory" if leads_out(name) else "is too long for the name of a file"
            raise UsageError(f"the key '{key}' {why}: write shards instead, with --shards")


def _saved(job: DecompressJob, out: str, rows: list[dict[str, Any]], overwrite: bool) -> Any:
    """A Ray dataset of the portions whose pictures are saved."""
    stages = pools(job.config.device, job.config.workers)
    column = job.plan.identity.get("column") or "image"
    return decoded(job, rows, stages, fields=job.config.shards).map(
        save_portion, **stages.tasks,
        fn_kwargs={
            "out": out, "kind": job.config.format, "shards": job.config.shards, "overwrite": overwrite,
            "column": column,
        },
    )  # fmt: skip
