"""Pictures -> shards of training crops, in parallel on Ray.

    OUT/plan.json                  written first: pictures and settings; another job there is refused
    OUT/_groups/train-00000.json   written after its shard: counts, SHA-256. A group without it is cut again.
    OUT/manifest.json              written last

Which pictures go into which shard is fixed before the work starts, so the bytes do not depend on how many work at it,
and running again does only what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from corrdiff.decoders import silence_decoders
from corrdiff.errors import JobError, UsageError
from pipelines.display.progress import Progress
from pipelines.files import storage
from pipelines.files.records import claim, read_record
from pipelines.inputs import sources
from pipelines.inputs.sources import Source
from pipelines.options import identity
from pipelines.runtime.session import ray_errors, ray_session
from pipelines.runtime.stages import one_block_each, rows_as_they_come
from pipelines.shards.config import ShardConfig
from pipelines.shards.cut import Group, Split, cut_group, plan_groups
from pipelines.shards.format import (
    FORMAT,
    MANIFEST,
    VALIDATION,
    Manifest,
    Shard,
    has_validation,
    read_manifest,
    read_planned,
    verify_shard,
    write_manifest,
)

PLAN, GROUPS = "plan.json", "_groups"


@dataclass(frozen=True)
class GroupRecord:
    """A group of pictures that is cut."""

    group: str
    plan: str
    """A hash of the pictures and settings of all groups."""
    shard: Shard
    skipped: tuple[tuple[str, str], ...]
    flat: int


class Verified(NamedTuple):
    """What reading all shards of a directory found."""

    shards: int
    wrong: list[tuple[str, str]]
    """URI of each shard that is not what was cut, and what is wrong with it."""


def cut_shards(
    images: str, out: str, config: ShardConfig, only: str | None = None
) -> Generator[Progress, None, dict[Split, Manifest]]:
    """Cut pictures into shards; yields progress, and returns the manifest of each split.

    `only` names one shard to cut again (`shard-00007.tar`, `val/shard-00000.tar`).

    Raises:
        UsageError: no pictures, no such shard, or `out` holds shards of something else.
        JobError: not one crop could be cut.
    """
    left_out: Counter[str] = Counter()
    pictures = sources.list_pictures(images, left_out)
    groups = {group.name: group for group in plan_groups(pictures, config)}
    plan = _plan_hash(groups, config)
    again = _find(groups, only) if only else None
    if storage.exists(storage.join(out, MANIFEST)) and again is None:
        if read_planned(out)[0] != plan:
            raise UsageError(f"{out} holds shards of other pictures or settings; choose another directory")
        manifests = {split: read_manifest(_directory(out, split)) for split in _splits(groups)}
        crops = sum(manifest.count for manifest in manifests.values())
        yield _progress(len(pictures), len(pictures), crops)
        return manifests
    records = _finished(out, plan)
    if not records:  # those that there are name this job's plan
        _check_free(out, groups)
    _claim(out, pictures, config)
    if again:
        records.pop(again, None)
    yield from _cut_missing(out, config, plan, groups, records)
    return _write_manifests(out, config, plan, groups, records, left_out)


def _check_free(out: str, groups: dict[str, Group]) -> None:
    """Raises `UsageError` where nobody has claimed `out` and something there is called as what would be written."""
    if storage.exists(storage.join(out, PLAN)):
        return
    for split in _splits(groups):
        directory = _directory(out, split)
        there = set(storage.list_names(directory))
        shards = (Shard(group.shard_name, 0, 0, "", "") for group in groups.values() if group.split == split)
        names = itertools.chain([MANIFEST], *((shard.name, shard.index_name) for shard in shards))
        taken = next((name for name in names if name in there), None)
        if taken is not None and not storage.exists(storage.join(out, PLAN)):
            raise UsageError(
                f"{storage.join(directory, taken)} exists, and is of no job that is known; choose another directory"
            )


def _cut_missing(
    out: str, config: ShardConfig, plan: str, groups: dict[str, Group], records: dict[str, GroupRecord]
) -> Iterator[Progress]:
    """Cut every group without a record, and put its record among the others; yields after each."""
    total = sum(len(group.sources) for group in groups.values())
    done = sum(len(groups[name].sources) for name in records)
    crops = sum(record.shard.count for record in records.values())
    yield _progress(done, total, crops)
    missing = [group for name, group in groups.items() if name not in records]
    if not missing:
        return
    with ray_session(), ray_errors():
        cut = _in_parallel([{"group": group} for group in missing], _cut, out=out, config=config, plan=plan)
        for row in cut:
            record: GroupRecord = row["record"]
            records[record.group] = record
            done, crops = done + len(groups[record.group].sources), crops + record.shard.count
            yield _progress(done, total, crops)


def _progress(done: int, total: int, crops: int) -> Progress:
    return Progress(done, total, "pictures", f"{crops:,} crops")


def verify_shards(uri: str) -> Generator[Progress, None, Verified]:
    """Read all shards of a directory in parallel; yields progress, and returns what was found.

    Raises `UsageError` where `uri` holds no shards.
    """
    directories = [uri, storage.join(uri, VALIDATION)] if has_validation(uri) else [uri]
    rows = [{"uri": where, "shard": shard} for where in directories for shard in read_manifest(where).shards]
    wrong: list[tuple[str, str]] = []
    yield Progress(0, len(rows), "shards")
    with ray_session(), ray_errors():
        for done, row in enumerate(_in_parallel(rows, _verify), start=1):
            if row["problem"]:
                wrong.append((row["name"], row["problem"]))
            yield Progress(done, len(rows), "shards", f"{len(wrong)} wrong" if wrong else "")
    return Verified(len(rows), wrong)


def _in_parallel(
    rows: list[dict[str, Any]], task: Callable[..., dict[str, Any]], **arguments: Any
) -> Iterator[dict[str, Any]]:
    """Run a Ray task for each row; yields what comes of it, in any order."""
    yield from rows_as_they_come(one_block_each(rows).map(task, fn_kwargs=arguments))


def _verify(row: dict[str, Any]) -> dict[str, Any]:
    """A Ray task: one shard -> what is wrong with it, or nothing."""
    uri, shard = row["uri"], row["shard"]
    return {"name": f"{uri}/{shard.name}", "problem": verify_shard(uri, shard) or ""}


def _cut(row: dict[str, Any], out: str, config: ShardConfig, plan: str) -> dict[str, Any]:
    """A Ray task: one group of pictures -> one shard, its index and its record."""
    silence_decoders()
    group: Group = row["group"]
    cut = cut_group(group, sources.read, config)
    if cut.shard.count:
        directory = _directory(out, group.split)
        storage.write_bytes(storage.join(directory, cut.shard.name), cut.tar_data)
        storage.write_bytes(storage.join(directory, cut.shard.index_name), cut.index_data)
    record = GroupRecord(group.name, plan, cut.shard, cut.skipped, cut.flat)
    storage.write_json(storage.join(out, GROUPS, f"{group.name}.json"), dataclasses.asdict(record))
    return {"record": record}


def _write_manifests(
    out: str, config: ShardConfig, plan: str, groups: dict[str, Group], records: dict[str, GroupRecord],
    left_out: Counter[str],
) -> dict[Split, Manifest]:  # fmt: skip
    manifests: dict[Split, Manifest] = {}
    for split in _splits(groups):
        of_split = [records[name] for name in sorted(records) if groups[name].split == split]
        skipped = tuple(picture for record in of_split for picture in record.skipped)
        flat = sum(record.flat for record in of_split)
        shards = tuple(record.shard for record in of_split if record.shard.count)
        if not shards:
            count = sum(len(group.sources) for group in groups.values() if group.split == split)
            raise JobError(
                f"no crop of {config.crop} pixels could be cut from the {count} pictures of '{split}' "
                f"({flat} were too flat); first that gave none: {skipped[:1]}"
            )
        manifests[split] = Manifest(config.crop, shards, skipped, flat, dict(left_out) if split == "train" else {})
    for split, manifest in reversed(manifests.items()):  # training's is last: it says that all is there
        write_manifest(_directory(out, split), plan, manifest)
    return manifests


def _splits(groups: dict[str, Group]) -> list[Split]:
    return ["train", "val"] if any(group.split == "val" for group in groups.values()) else ["train"]


def _directory(out: str, split: Split) -> str:
    return out if split == "train" else storage.join(out, VALIDATION)


def _find(groups: dict[str, Group], only: str) -> str:
    """The group of a shard that a person named."""
    prefix, _, name = only.rpartition("/")
    split = "val" if prefix.endswith(VALIDATION) else "train"
    for group in groups.values():
        if group.split == split and group.shard_name == name:
            return group.name
    raise UsageError(
        f"--only {only}: these pictures make no such shard; name one as shard-00000.tar or val/shard-00000.tar"
    )


_RECORD = re.compile(r"(train|val)-\d{5,}\.json")


def _finished(out: str, plan: str) -> dict[str, GroupRecord]:
    """Records of the groups that an earlier run of the same plan has finished."""
    names = [name for name in storage.list_names(storage.join(out, GROUPS)) if _RECORD.fullmatch(name)]
    found = (read_record(storage.join(out, GROUPS, name), GroupRecord) for name in names)
    records = {record.group: record for record in found}
    if any(record.plan != plan for record in records.values()):
        raise UsageError(f"{out} holds unfinished shards of other pictures or settings; choose another directory")
    return records


def _claim(out: str, pictures: Sequence[Source], config: ShardConfig) -> None:
    """Make `out` this job's, or refuse it: of two that begin at the same moment one is refused."""
    uris = json.dumps([source.uri for source in pictures]).encode()
    record = {"identity": {"pictures": hashlib.sha256(uris).hexdigest(), **identity(config)}}
    claim(storage.join(out, PLAN), record, f"{out} holds shards of other pictures or settings")


def _plan_hash(groups: dict[str, Group], config: ShardConfig) -> str:
    uris = {name: [source.uri for source in group.sources] for name, group in groups.items()}
    plan = {"format": FORMAT, "config": dataclasses.asdict(config), "groups": uris}
    return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
