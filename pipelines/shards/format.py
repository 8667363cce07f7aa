"""What a directory of shards is: the manifest, each shard's index, and reading a run of crops out of a shard.

    SHARDS/manifest.json       names, counts, bytes and SHA-256 of all shards: all that the plan of an epoch needs
    SHARDS/shard-00000.tar     a WebDataset of KEY.png and KEY.json (source, y, x)
    SHARDS/shard-00000.index   safetensors: where each PNG starts, how long it is, its SHA-256
    SHARDS/val/                the same for the pictures that are held out

A worker reads the crops that the plan gives it by their byte range, and checks each against the index, and the index
against the manifest. So nothing that was changed, cut short or mixed up is ever trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from corrdiff.errors import JobError, UsageError
from pipelines.files import storage
from pipelines.files.records import to_record

MANIFEST = "manifest.json"
FORMAT = "corrdiff-shards-1"
VALIDATION = "val"


@dataclass(frozen=True)
class Shard:
    """One tar of crops."""

    name: str
    count: int
    """Crops in it."""
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def index_name(self) -> str:
        """The name of its index, in the same directory."""
        return self.name.removesuffix(".tar") + ".index"

    def key(self, member: int) -> str:
        """The name of a crop in the tar, without the extension."""
        return f"{self.name.removeprefix('shard-').removesuffix('.tar')}-{member:06d}"


@dataclass(frozen=True)
class Manifest:
    """All shards of a dataset of crops."""

    crop: int
    shards: tuple[Shard, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    """Pictures that gave no crops: URI and reason."""
    flat: int = 0
    """Crops that were left out because next to nothing is in them."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> files that were found and not taken; in the manifest of the training shards, for all of them."""

    @property
    def count(self) -> int:
        """Crops in all shards."""
        return sum(shard.count for shard in self.shards)


class Index(NamedTuple):
    """Where the crops of a shard are."""

    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    sha256: npt.NDArray[np.uint8]
    """[n, 32]"""

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return safetensors.numpy.save(self._asdict())


def read_manifest(uri: str) -> Manifest:
    """Read what a directory of shards holds.

    Raises `UsageError` where `uri` holds no shards, or where its manifest is damaged.
    """
    return read_planned(uri)[1]


def read_planned(uri: str) -> tuple[str, Manifest]:
    """Read a hash of the pictures and settings that shards were cut from, and their manifest.

    Raises `UsageError` as `read_manifest` does.
    """
    name = storage.join(uri, MANIFEST)
    try:
        value = storage.read_json(name)
    except (FileNotFoundError, NotADirectoryError):
        if "{" in uri:
            raise UsageError(f"no shards at {uri}: name the one directory of corrdiff shards, without braces") from None
        raise UsageError(
            f"no shards at {uri}: there is no {MANIFEST}; cut some with 'corrdiff shard IMAGES {uri}'"
        ) from None
    if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
        raise UsageError(f"{name} is of no format that this program reads ({FORMAT})")
    return str(value.pop("plan", "")), to_record(value, Manifest, name)


def write_manifest(uri: str, plan: str, manifest: Manifest) -> None:
    """Say that a directory of shards is complete; `plan` is a hash of what it was cut from."""
    value = {"format": FORMAT, "plan": plan, **dataclasses.asdict(manifest)}
    storage.write_json(storage.join(uri, MANIFEST), value)


def has_validation(uri: str) -> bool:
    """Whether pictures were held out, in shards of their own."""
    return storage.exists(storage.join(uri, VALIDATION, MANIFEST))


def read_index(uri: str, shard: Shard) -> Index:
    """Read where the crops of a shard are.

    Raises `JobError` where that is missing or not the manifest's.
    """
    name = storage.join(uri, shard.index_name)
    try:
        data = storage.read_bytes(name, storage.PATIENT_ATTEMPTS)
    except FileNotFoundError:
        raise JobError(f"shard {uri}/{shard.name}: its index is missing; {_repair(shard)}") from None
    if hashlib.sha256(data).hexdigest() != shard.index_sha256:
        raise JobError(f"shard {uri}/{shard.name}: its index is not the manifest's; {_repair(shard)}")
    return Index(**safetensors.numpy.load(data))


def read_crops(uri: str, shard: Shard, first: int, last: int) -> list[memoryview]:
    """The PNG files of crops [first, last) of a shard, each checked against the index.

    Raises `JobError` with the shard, the crop and the byte where anything is missing, cut short or changed.
    """
    return list(_checked(uri, shard, read_index(uri, shard), first, last))


def verify_shard(uri: str, shard: Shard) -> str | None:
    """Read all of a shard; returns what is wrong with it, or None."""
    try:
        data = storage.read_bytes(storage.join(uri, shard.name), storage.PATIENT_ATTEMPTS)
        index = read_index(uri, shard)
        if len(index.offset) != shard.count:
            return f"its index has {len(index.offset)} crops, the manifest {shard.count}"
        if len(data) != shard.bytes:
            return f"{len(data):,} bytes, the manifest says {shard.bytes:,}"
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            for _ in _checked(uri, shard, index, 0, shard.count):
                pass
            return "its SHA-256 is not the manifest's, though every crop is right"
    except FileNotFoundError:
        return "missing"
    except JobError as error:
        return str(error).removeprefix(f"shard {uri}/{shard.name}: ")
    return None


def _checked(uri: str, shard: Shard, index: Index, first: int, last: int) -> Iterator[memoryview]:
    name = storage.join(uri, shard.name)
    start, end = int(index.offset[first]), int(index.offset[last - 1] + index.size[last - 1])
    try:
        data = storage.read_range(name, start, end)
    except FileNotFoundError:
        raise JobError(f"shard {name} is missing; {_repair(shard)}") from None
    view = memoryview(data)
    for member in range(first, last):
        at = int(index.offset[member]) - start
        content = view[at : at + int(index.size[member])]
        if hashlib.sha256(content).digest() != index.sha256[member].tobytes():
            raise JobError(
                f"shard {name}: crop {shard.key(member)}.png at byte {at + start:,} is not what was cut: its SHA-256 "
                f"differs; {_repair(shard)}"
            )
        yield content


def _repair(shard: Shard) -> str:
    return f"copy it again, or cut it again with 'corrdiff shard IMAGES SHARDS --only {shard.name}'"
