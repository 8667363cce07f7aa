"""Pictures -> WebDataset shards of training crops, and a manifest.

    OUT/shard-00000.tar    KEY.png, KEY.json (source, y, x); webdataset reads it as it is
    OUT/_groups/00000.json written after its shard: names, counts, SHA-256. A group without it is cut again.
    OUT/manifest.json      written last: everything that a reader needs to plan an epoch

Which pictures go into which shard is fixed before the work starts, so running again does only what is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from corrdiff.codec import Picture
from corrdiff.errors import JobError, UsageError
from corrdiff.images import ImageError, open_image, save_png
from pipelines import pictures, storage
from pipelines.config import ShardConfig
from pipelines.pictures import Source
from pipelines.ray_session import own_errors

MANIFEST = "manifest.json"
FORMAT = "corrdiff-shards-1"


@dataclass(frozen=True)
class Shard:
    """One tar."""

    name: str
    count: int
    """Crops in it."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All shards of a dataset of crops."""

    crop: int
    shards: tuple[Shard, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    """Pictures that gave no crops: URI and reason."""

    @property
    def count(self) -> int:
        return sum(shard.count for shard in self.shards)


class Progress(NamedTuple):
    """After a group of pictures is cut."""

    images_done: int
    images_total: int
    crops: int


def read_manifest(uri: str) -> Manifest:
    """Raises `UsageError` where `uri` holds no shards."""
    try:
        data = storage.read_json(storage.join(uri, MANIFEST))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"no shards at {uri}: there is no {MANIFEST}; cut some with 'corrdiff shard IMAGES {uri}'"
        ) from None
    try:
        if data["format"] != FORMAT:
            raise UsageError(f"{uri}/{MANIFEST} has the unknown format '{data['format']}'")
        shards = tuple(Shard(**shard) for shard in data["shards"])
        return Manifest(int(data["crop"]), shards, tuple((u, r) for u, r in data["skipped"]))
    except (KeyError, TypeError) as error:
        raise UsageError(f"{uri}/{MANIFEST} is damaged ({error})") from None


def cut_shards(images: str, out: str, config: ShardConfig) -> Iterator[Progress | Manifest]:
    """Cut pictures into shards in parallel on Ray; yields progress, and the manifest at the end.

    Raises:
        UsageError: no pictures, or `out` holds shards of something else.
        JobError: not one crop could be cut.
    """
    import ray.data

    sources = pictures.list_pictures(images)
    groups = plan_groups(sources, config)
    plan = {"format": FORMAT, "config": dataclasses.asdict(config), "groups": [[s.uri for s in g] for g in groups]}
    plan_hash = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    manifest_uri = storage.join(out, MANIFEST)
    if storage.exists(manifest_uri):
        if storage.read_json(manifest_uri).get("plan") != plan_hash:
            raise UsageError(f"{out} holds shards of other pictures or settings; choose another directory")
        yield Progress(len(sources), len(sources), read_manifest(out).count)
        yield read_manifest(out)
        return
    records = _finished(out, plan_hash)
    done_images = sum(len(groups[i]) for i in records)
    missing = [i for i in range(len(groups)) if i not in records]
    yield Progress(done_images, len(sources), sum(r["count"] for r in records.values()))
    if missing:
        rows = [{"group": i, "keys": [s.key for s in groups[i]], "uris": [s.uri for s in groups[i]]} for i in missing]
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _cut_group, fn_kwargs={"out": out, "config": dataclasses.asdict(config), "plan": plan_hash}
        )
        with own_errors():
            for row in dataset.iter_rows():
                record = json.loads(row["record"])
                records[record["group"]] = record
                done_images += len(groups[record["group"]])
                yield Progress(done_images, len(sources), sum(r["count"] for r in records.values()))
    ordered = [records[i] for i in sorted(records)]
    shards = tuple(Shard(r["name"], r["count"], r["bytes"], r["sha256"]) for r in ordered if r["count"])
    skipped = tuple((u, reason) for r in ordered for u, reason in r["skipped"])
    if not shards:
        raise JobError(
            f"no crop of {config.crop} pixels could be cut from {len(sources)} pictures; first: {skipped[:1]}"
        )
    manifest = Manifest(config.crop, shards, skipped)
    storage.write_json(manifest_uri, {"format": FORMAT, "plan": plan_hash, **dataclasses.asdict(manifest)})
    yield manifest


def plan_groups(sources: list[Source], config: ShardConfig) -> list[list[Source]]:
    """Which pictures make which shard: shuffled by the seed, then dealt in runs."""
    order = np.random.default_rng(config.seed).permutation(len(sources))
    shuffled = [sources[i] for i in order]
    n = config.images_per_shard
    return [shuffled[i : i + n] for i in range(0, len(shuffled), n)]


def crop_positions(size: int, crop: int, stride: int) -> list[int]:
    """Where crops start along one axis: evenly spread from border to border, at most `stride` apart."""
    if size < crop:
        return []
    count = -(-(size - crop) // stride) + 1
    return [round(i * (size - crop) / max(count - 1, 1)) for i in range(count)]


def _cut_group(row: dict[str, Any], out: str, config: dict[str, Any], plan: str) -> dict[str, Any]:
    """A Ray task: one group of pictures -> one shard and its record."""
    settings = ShardConfig(**config)
    group = int(row["group"])
    buffer = io.BytesIO()
    count, skipped = 0, []
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, uri in zip(row["keys"], row["uris"], strict=True):
            source = Source(str(key), str(uri))
            try:
                pixels = open_image(pictures.read(source)).pixels
            except (ImageError, OSError) as error:
                skipped.append((source.uri, str(error)))
                continue
            before = count
            for y, x in _positions(pixels, settings):
                stem = f"{group:05d}-{count:05d}"
                crop = pixels[y : y + settings.crop, x : x + settings.crop]
                add_member(tar, f"{stem}.json", json.dumps({"source": source.uri, "y": y, "x": x}).encode())
                add_member(tar, f"{stem}.png", save_png(np.ascontiguousarray(crop)))
                count += 1
            if count == before:
                height, width = pixels.shape[:2]
                skipped.append((source.uri, f"{width}x{height} is smaller than the crop"))
    data = buffer.getvalue()
    name = f"shard-{group:05d}.tar"
    record = {
        "group": group, "plan": plan, "name": name, "count": count, "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(), "skipped": skipped,
    }  # fmt: skip
    if count:
        storage.write_bytes(storage.join(out, name), data)
    storage.write_json(storage.join(out, "_groups", f"{group:05d}.json"), record)
    return {"record": json.dumps(record)}


def _positions(pixels: Picture, config: ShardConfig) -> Iterator[tuple[int, int]]:
    height, width = pixels.shape[:2]
    stride = config.stride or config.crop
    for y in crop_positions(height, config.crop, stride):
        for x in crop_positions(width, config.crop, stride):
            yield y, x


def _finished(out: str, plan_hash: str) -> dict[int, dict[str, Any]]:
    """Records of the groups that an earlier run of the same plan has finished."""
    records: dict[int, dict[str, Any]] = {}
    for name in storage.list_names(storage.join(out, "_groups")):
        record = storage.read_json(storage.join(out, "_groups", name))
        if record["plan"] != plan_hash:
            raise UsageError(f"{out} holds unfinished shards of other pictures or settings; choose another directory")
        records[record["group"]] = record
    return records


def read_members(data: bytes, extension: str) -> Iterator[tuple[str, bytes]]:
    """Key and content of each file with that extension in a tar, in its order."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            if info.name.endswith(extension):
                file = tar.extractfile(info)
                assert file is not None
                yield info.name.removesuffix(extension), file.read()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A file whose header holds nothing but its name and size, so that the same content gives the same tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
