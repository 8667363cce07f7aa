"""A compressed dataset -> pictures, in parallel on Ray Data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from corrdiff.checkpoint import load_codec, read_config
from corrdiff.errors import JobError, UsageError
from corrdiff.images import save_png
from pipelines import storage
from pipelines.batch_compress import PLAN, unit_records
from pipelines.ray_session import own_errors
from pipelines.tar import read_members


class Progress(NamedTuple):
    """After a part."""

    pictures_done: int
    pictures_total: int


def decompress_dataset(dataset: str, out: str, codec: str) -> Iterator[Progress]:
    """Every picture of a compressed dataset -> PNG files under `out`, in parallel on Ray; yields progress.

    Raises:
        UsageError: no compressed dataset, or another codec's.
        JobError: a part is missing or damaged.
    """
    import ray.data

    dataset, out, codec = storage.absolute(dataset), storage.absolute(out), storage.absolute(codec)
    try:
        plan = storage.read_json(storage.join(dataset, PLAN))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"no compressed dataset at {dataset}: there is no {PLAN}") from None
    fingerprint = read_config(codec)[1]
    if plan["identity"]["codec"] != fingerprint:
        raise UsageError(
            f"{dataset} was compressed by codec {plan['identity']['codec'][:16]}, "
            f"but {codec} is {fingerprint[:16]}; give the codec that wrote it"
        )
    records = unit_records(dataset)
    if len(records) < len(plan["units"]):
        raise UsageError(
            f"{dataset} is not complete: {len(records)} of {len(plan['units'])} parts; run 'corrdiff compress' again"
        )
    total = sum(r["pictures"] - r["failures"] for r in records.values())
    done = 0
    yield Progress(done, total)
    rows = [{"record": json.dumps(r)} for r in records.values()]
    ds = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        PartDecompressor,
        fn_constructor_args=(dataset, out, codec),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(rows)),
        num_cpus=1,
    )
    with own_errors():
        for row in ds.iter_rows():
            done += int(row["pictures"])
            yield Progress(done, total)


class PartDecompressor:
    """A Ray Data actor: parts -> PNG files."""

    def __init__(self, dataset: str, out: str, codec: str) -> None:
        import torch

        torch.set_num_threads(1)
        self.dataset, self.out, self.codec = dataset, out, load_codec(codec)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"pictures": [self.do_part(json.loads(record)) for record in batch["record"]]}

    def do_part(self, record: dict[str, Any]) -> int:
        expected = record["files"]["tar"]
        uri = storage.join(self.dataset, expected["name"])
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError:
            raise JobError(f"part {uri} is missing; copy it again") from None
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise JobError(f"part {uri} is damaged: its SHA-256 is not the record's; copy it again")
        count = 0
        for key, file in read_members(data, ".crdf"):
            storage.write_bytes(storage.join(self.out, f"{key}.png"), save_png(self.codec.decompress(file)))
            count += 1
        return count
