"""All files under a directory or prefix, on any fsspec URI, without holding more of them than a page or directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import fsspec

from pipelines.files.retries import PATIENT_ATTEMPTS, with_retries
from pipelines.files.storage import is_local, open_fs


def walk(uri: str) -> Iterator[str]:
    """Paths under a directory or prefix of all files in it, in the order of their bytes, a page or directory at a time.

    Raises `JobError` where storage cannot be read, `UsageError` where it may not be.
    """
    fs, path = open_fs(uri)
    if "s3" in fs.protocol:
        return _walk_s3(fs, path)
    if is_local(fs):
        return _walk_tree(path, "", _local_entries, os.path.realpath, ())
    return _walk_tree(path, "", lambda p: _entries(fs, p), str, ())


def _walk_s3(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[str]:
    """Page by page: the driver's own listing holds all of them."""
    bucket, _, prefix = path.partition("/")
    begin = f"{prefix.rstrip('/')}/" if prefix else ""
    asked = {"Bucket": bucket, "Prefix": begin}
    while True:
        page = with_retries(f"listing s3://{path}", lambda: fs.call_s3("list_objects_v2", **asked), PATIENT_ATTEMPTS)
        names = (str(found["Key"]).removeprefix(begin) for found in page.get("Contents", ()))
        yield from (name for name in names if name and not name.endswith("/"))  # consoles keep folders as empty objects
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _walk_tree(
    path: str, under: str, entries: Callable[[str], list[str]], real: Callable[[str], str], above: tuple[str, ...]
) -> Iterator[str]:
    """`entries` gives the names in a directory, those of directories with a slash at the end; `real` resolves links."""
    here = real(path)
    if here in above:  # a link that leads to where it is
        return
    for name in sorted(entries(path)):
        if name.endswith("/"):
            yield from _walk_tree(f"{path}/{name[:-1]}", f"{under}{name}", entries, real, (*above, here))
        else:
            yield f"{under}{name}"


def _local_entries(path: str) -> list[str]:
    def is_directory(entry: os.DirEntry[str]) -> bool:
        try:
            return entry.is_dir()
        except OSError:  # a link to itself
            return False

    def scan() -> list[str]:
        with os.scandir(path) as found:
            return [f"{entry.name}/" if is_directory(entry) else entry.name for entry in found]

    return with_retries(f"listing {path}", scan)


def _entries(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    def ls() -> list[str]:
        found = (
            (str(entry["name"]).rstrip("/").rsplit("/", 1)[-1], entry["type"]) for entry in fs.ls(path, detail=True)
        )
        return [f"{name}/" if kind == "directory" else name for name, kind in found if name]

    return with_retries(f"listing {path}", ls)
