"""All files under a directory or prefix, on any fsspec URI, without holding more of them than a page or directory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import fsspec

from pipelines.files.retries import PATIENT_ATTEMPTS, with_retries
from pipelines.files.storage import is_local, open_fs


class Listed(NamedTuple):
    """A file that is there."""

    name: str
    """Its path under the directory."""
    mark: int = 0
    """Of its content, as the listing tells it (size and time, or the tag of an object): another one where that has
    changed. 0 where nothing is known; 64 bits with a sign."""


def mark_of(*told: object) -> int:
    """The mark of a file of which a listing tells this."""
    return int.from_bytes(hashlib.blake2b(repr(told).encode(), digest_size=8).digest(), "little", signed=True)


def walk(uri: str) -> Iterator[Listed]:
    """All files under a directory or prefix, in the order of their names' bytes, a page or directory at a time.

    Raises `JobError` where storage cannot be read, `UsageError` where it may not be.
    """
    fs, path = open_fs(uri)
    if "s3" in fs.protocol:
        return _walk_s3(fs, path)
    if is_local(fs):
        return _walk_tree(path, "", _local_entries, os.path.realpath, ())
    return _walk_tree(path, "", lambda p: _entries(fs, p), str, ())


def _walk_s3(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Listed]:
    """Page by page: the driver's own listing holds all of them."""
    bucket, _, prefix = path.partition("/")
    begin = f"{prefix.rstrip('/')}/" if prefix else ""
    asked = {"Bucket": bucket, "Prefix": begin}
    while True:
        page = with_retries(f"listing s3://{path}", lambda: fs.call_s3("list_objects_v2", **asked), PATIENT_ATTEMPTS)
        for found in page.get("Contents", ()):
            name = str(found["Key"]).removeprefix(begin)
            if name and not name.endswith("/"):  # consoles keep folders as empty objects
                yield Listed(name, mark_of(found.get("Size"), found.get("ETag")))
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _walk_tree(
    path: str, under: str, entries: Callable[[str], list[Listed]], real: Callable[[str], str], above: tuple[str, ...]
) -> Iterator[Listed]:
    """`entries` gives what is in a directory, names of directories with a slash at the end; `real` resolves links."""
    here = real(path)
    if here in above:  # a link that leads to where it is
        return
    for name, mark in sorted(entries(path)):
        if name.endswith("/"):
            yield from _walk_tree(f"{path}/{name[:-1]}", f"{under}{name}", entries, real, (*above, here))
        else:
            yield Listed(f"{under}{name}", mark)


def _local_entries(path: str) -> list[Listed]:
    def is_directory(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link to itself
            return False

    def mark(entry: os.DirEntry[str]) -> int:
        try:
            found = entry.stat()
        except OSError:  # a link that leads nowhere
            return 0
        return mark_of(found.st_size, found.st_mtime_ns)

    def scan() -> list[Listed]:
        with os.scandir(path) as found:
            return [
                Listed(f"{entry.name}/") if is_directory(entry) else Listed(entry.name, mark(entry)) for entry in found
            ]

    return with_retries(f"listing {path}", scan)


_TOLD = ("size", "ETag", "etag", "md5Hash", "mtime", "created", "last_modified", "updated")
"""What file systems tell of a file's content, in whatever words."""


def _entries(fs: fsspec.AbstractFileSystem, path: str) -> list[Listed]:
    def listed(found: Iterable[dict[str, Any]]) -> Iterator[Listed]:
        for entry in found:
            name = str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]
            told = [str(entry[what]) for what in _TOLD if entry.get(what) is not None]
            if name:
                yield (
                    Listed(f"{name}/") if entry["type"] == "directory" else Listed(name, mark_of(*told) if told else 0)
                )

    return with_retries(f"listing {path}", lambda: list(listed(fs.ls(path, detail=True))))
