"""Pictures -> shards of training crops, in parallel on Ray.

    OUT/_groups/train-00000.json   written after its shard: counts, SHA-256. A group without it is cut again.
    OUT/manifest.json              written last

Which pictures go into which shard is fixed before the work starts, so the bytes do not depend on how many work at it,
and running again does only what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np

from corrdiff.decoders import silence_decoders
from corrdiff.errors import JobError, UsageError
from corrdiff.images import ImageError, open_image, save_png
from corrdiff.picture import Picture
from pipelines.files import storage
from pipelines.files.tar import add_member
from pipelines.inputs import sources as pictures
from pipelines.inputs.sources import Source
from pipelines.runtime.session import ray_errors, ray_session
from pipelines.shards.config import ShardConfig
from pipelines.shards.format import FORMAT, MANIFEST, VALIDATION, Index, Manifest, Shard, read_manifest, verify_shard

Split = Literal["train", "val"]


class Group(NamedTuple):
    """The pictures of one shard."""

    split: Split
    number: int
    sources: list[Source]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"

    @property
    def shard_name(self) -> str:
        return f"shard-{self.number:05d}.tar"


class Progress(NamedTuple):
    """After a group of pictures is cut."""

    pictures_done: int
    pictures_total: int
    crops: int


def cut_shards(
    images: str, out: str, config: ShardConfig, only: str | None = None
) -> Iterator[Progress | dict[Split, Manifest]]:
    """Cut pictures into shards; yields progress, and at the end the manifest of each split.

    `only` names one shard to cut again (`shard-00007.tar`, `val/shard-00000.tar`).

    Raises:
        UsageError: no pictures, no such shard, or `out` holds shards of something else.
        JobError: not one crop could be cut.
    """
    sources = pictures.list_pictures(images)
    groups = {group.name: group for group in plan_groups(sources, config)}
    plan = _plan_hash(groups, config)
    again = _find(groups, only) if only else None
    if storage.exists(storage.join(out, MANIFEST)) and again is None:
        if storage.read_json(storage.join(out, MANIFEST)).get("plan") != plan:
            raise UsageError(f"{out} holds shards of other pictures or settings; choose another directory")
        manifests = _read_manifests(out, groups)
        yield Progress(len(sources), len(sources), sum(m.count for m in manifests.values()))
        yield manifests
        return
    records = _finished(out, plan)
    if again:
        records.pop(again, None)
    done = sum(len(groups[name].sources) for name in records)
    yield Progress(done, len(sources), sum(r["shard"]["count"] for r in records.values()))
    missing = [group for name, group in groups.items() if name not in records]
    if missing:
        rows = [
            {
                "split": g.split,
                "number": g.number,
                "keys": [s.key for s in g.sources],
                "uris": [s.uri for s in g.sources],
            }
            for g in missing
        ]
        arguments = {"out": out, "config": dataclasses.asdict(config), "plan": plan}
        with ray_session(), ray_errors():
            for row in _in_parallel(rows, _cut_group, fn_kwargs=arguments):
                record = json.loads(row["record"])
                records[record["group"]] = record
                done += len(groups[record["group"]].sources)
                yield Progress(done, len(sources), sum(r["shard"]["count"] for r in records.values()))
    yield _write_manifests(out, config, plan, groups, records)


def verify_shards(uri: str) -> Iterator[tuple[str, str | None]]:
    """Read all shards of a directory in parallel; yields each one's name and what is wrong with it.

    Raises `UsageError` where `uri` holds no shards.
    """
    rows = []
    for prefix in ("", VALIDATION):
        if not prefix or storage.exists(storage.join(uri, prefix, MANIFEST)):
            where = storage.join(uri, prefix) if prefix else uri
            rows += [{"uri": where, **dataclasses.asdict(shard)} for shard in read_manifest(where).shards]
    with ray_session(), ray_errors():
        for row in _in_parallel(rows, _verify):
            yield f"{row['uri']}/{row['name']}", row["wrong"] or None


def _in_parallel(rows: list[dict[str, Any]], task: Callable[..., dict[str, Any]], **options: Any) -> Iterator[Any]:
    """A Ray task for each row; what comes of it, in any order."""
    import ray.data

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(task, **options)
    yield from dataset.iter_rows()


def _verify(row: dict[str, Any]) -> dict[str, Any]:
    uri = row.pop("uri")
    shard = Shard(**row)
    return {"uri": uri, "name": shard.name, "wrong": verify_shard(uri, shard) or ""}


def plan_groups(sources: list[Source], config: ShardConfig) -> list[Group]:
    """Which pictures make which shard: shuffled by the seed, the held-out ones first, dealt in runs."""
    order = np.random.default_rng(config.seed).permutation(len(sources))
    shuffled = [sources[i] for i in order]
    held_out = int(np.ceil(config.val_fraction * len(sources)))
    parts: dict[Split, list[Source]] = {"val": shuffled[:held_out], "train": shuffled[held_out:]}
    n = config.pictures_per_shard
    return [Group(split, i // n, part[i : i + n]) for split, part in parts.items() for i in range(0, len(part), n)]


def crop_positions(size: int, crop: int, stride: int) -> list[int]:
    """Where crops start along one axis: evenly spread from border to border, at most `stride` apart."""
    if size < crop:
        return []
    count = -(-(size - crop) // stride) + 1
    return [round(i * (size - crop) / max(count - 1, 1)) for i in range(count)]


def detail(pixels: Picture) -> float:
    """Mean absolute difference of neighbouring pixels, in 8-bit levels: near 0 for sky, borders and blanks."""
    signed = pixels.astype(np.int16)
    return float((np.abs(np.diff(signed, axis=0)).mean() + np.abs(np.diff(signed, axis=1)).mean()) / 2)


def _cut_group(row: dict[str, Any], out: str, config: dict[str, Any], plan: str) -> dict[str, Any]:
    """A Ray task: one group of pictures -> one shard, its index and its record."""
    silence_decoders()
    settings = ShardConfig(**config)
    sources = [Source(str(k), str(u)) for k, u in zip(row["keys"], row["uris"], strict=True)]
    group = Group(row["split"], int(row["number"]), sources)
    named = Shard(group.shard_name, 0, 0, "", "")
    offsets: list[int] = []
    sizes: list[int] = []
    digests, skipped, flat = [], [], 0
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for source in sources:
            try:
                pixels = open_image(pictures.read(source)).pixels
            except (ImageError, OSError) as error:
                skipped.append((source.uri, str(error)))
                continue
            positions = list(_positions(pixels, settings))
            if not positions:
                height, width = pixels.shape[:2]
                skipped.append((source.uri, f"{width}x{height} is smaller than the crop"))
            for y, x in positions:
                crop = np.ascontiguousarray(pixels[y : y + settings.crop, x : x + settings.crop])
                if detail(crop) < settings.min_detail:
                    flat += 1
                    continue
                key, png = named.key(len(sizes)), save_png(crop)
                add_member(tar, f"{key}.json", json.dumps({"source": source.uri, "y": y, "x": x}).encode())
                offsets.append(add_member(tar, f"{key}.png", png))
                sizes.append(len(png))
                digests.append(np.frombuffer(hashlib.sha256(png).digest(), np.uint8))
    data = buffer.getvalue()
    digest_n32 = np.array(digests, np.uint8).reshape(-1, 32)
    index = Index(np.array(offsets, np.int64), np.array(sizes, np.int64), digest_n32).to_bytes()
    shard = Shard(named.name, len(sizes), len(data), _sha256(data), _sha256(index))
    if shard.count:
        storage.write_bytes(storage.join(_directory(out, group.split), shard.name), data)
        storage.write_bytes(storage.join(_directory(out, group.split), shard.index_name), index)
    record = {
        "group": group.name, "plan": plan, "shard": dataclasses.asdict(shard), "skipped": skipped, "flat": flat,
    }  # fmt: skip
    storage.write_json(storage.join(out, "_groups", f"{group.name}.json"), record)
    return {"record": json.dumps(record)}


def _positions(pixels: Picture, config: ShardConfig) -> Iterator[tuple[int, int]]:
    height, width = pixels.shape[:2]
    stride = config.stride or config.crop
    for y in crop_positions(height, config.crop, stride):
        for x in crop_positions(width, config.crop, stride):
            yield y, x


def _write_manifests(
    out: str, config: ShardConfig, plan: str, groups: dict[str, Group], records: dict[str, dict[str, Any]]
) -> dict[Split, Manifest]:
    manifests: dict[Split, Manifest] = {}
    for split in _splits(groups):
        mine = [records[name] for name in sorted(records) if groups[name].split == split]
        skipped = tuple((u, reason) for r in mine for u, reason in r["skipped"])
        shards = tuple(Shard(**r["shard"]) for r in mine if r["shard"]["count"])
        if not shards:
            pictures_of = sum(len(g.sources) for g in groups.values() if g.split == split)
            flat = sum(r["flat"] for r in mine)
            raise JobError(
                f"no crop of {config.crop} pixels could be cut from the {pictures_of} pictures of '{split}' "
                f"({flat} were too flat); first that gave none: {skipped[:1]}"
            )
        manifests[split] = Manifest(config.crop, shards, skipped, sum(r["flat"] for r in mine))
    for split, manifest in reversed(manifests.items()):  # training's is last: it says that all is there
        value = {"format": FORMAT, "plan": plan, **dataclasses.asdict(manifest)}
        storage.write_json(storage.join(_directory(out, split), MANIFEST), value)
    return manifests


def _read_manifests(out: str, groups: dict[str, Group]) -> dict[Split, Manifest]:
    return {split: read_manifest(_directory(out, split)) for split in _splits(groups)}


def _splits(groups: dict[str, Group]) -> list[Split]:
    return ["train", "val"] if any(g.split == "val" for g in groups.values()) else ["train"]


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


def _finished(out: str, plan: str) -> dict[str, dict[str, Any]]:
    """Records of the groups that an earlier run of the same plan has finished."""
    records: dict[str, dict[str, Any]] = {}
    for name in storage.list_names(storage.join(out, "_groups")):
        record = storage.read_json(storage.join(out, "_groups", name))
        if record["plan"] != plan:
            raise UsageError(f"{out} holds unfinished shards of other pictures or settings; choose another directory")
        records[record["group"]] = record
    return records


def _plan_hash(groups: dict[str, Group], config: ShardConfig) -> str:
    uris = {name: [s.uri for s in group.sources] for name, group in groups.items()}
    plan = {"format": FORMAT, "config": dataclasses.asdict(config), "groups": uris}
    return _sha256(json.dumps(plan, sort_keys=True).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
