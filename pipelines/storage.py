"""Files on any fsspec URI, the same way everywhere: local paths, s3:// and the rest."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from corrdiff.errors import JobError, UsageError

T = TypeVar("T")

READ_ATTEMPTS = 5
FIRST_DELAY_S = 0.2

_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
_DRIVERS = ("aiobotocore", "aiohttp", "botocore", "urllib3")
"""Packages whose errors about the network are not `OSError`s."""


def absolute(uri: str) -> str:
    """A URI as it is, a local path made absolute, so that a worker elsewhere understands it. No trailing slash."""
    if "://" in uri:
        return uri.rstrip("/")
    return os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def open_fs(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path in it. Raises `UsageError` for an unknown scheme."""
    try:
        fs, path = fsspec.core.url_to_fs(uri, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise UsageError(f"cannot open {uri}: {error}") from None
    return fs, str(path)


def read_bytes(uri: str) -> bytes:
    """A whole object; transient errors are tried again. Raises `FileNotFoundError` where there is none."""

    def read() -> bytes:
        fs, path = open_fs(uri)
        data: bytes = fs.cat_file(path)
        return data

    return with_retries(f"reading {uri}", read)


def write_bytes(uri: str, data: bytes) -> None:
    """A whole object, visible only when it is complete: renamed into place on local disks, one PUT elsewhere."""

    def write() -> None:
        fs, path = open_fs(uri)
        if is_local(fs):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            temporary = f"{path}.{os.getpid()}.tmp"
            try:
                with open(temporary, "wb") as f:
                    f.write(data)
                    f.flush()
                    os.fsync(f.fileno())
                os.replace(temporary, path)
            finally:
                if os.path.exists(temporary):
                    os.unlink(temporary)
        else:
            fs.pipe_file(path, data)

    with_retries(f"writing {uri}", write)


def exists(uri: str) -> bool:
    fs, path = open_fs(uri)
    return bool(with_retries(f"looking for {uri}", lambda: fs.exists(path)))


def list_names(uri: str) -> list[str]:
    """Names directly under a directory, sorted; empty where there is none."""
    fs, path = open_fs(uri)

    def ls() -> list[str]:
        fs.invalidate_cache()
        try:
            return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(path, detail=False))
        except FileNotFoundError:
            return []

    return [name for name in with_retries(f"listing {uri}", ls) if name]


def remove_tree(uri: str) -> None:
    fs, path = open_fs(uri)
    if fs.exists(path):
        fs.rm(path, recursive=True)


def read_json(uri: str) -> Any:
    """Raises `UsageError` where the object is not JSON, `FileNotFoundError` where it is missing."""
    data = read_bytes(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise UsageError(f"{uri} is damaged: not JSON ({error})") from None


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, json.dumps(value, indent=1, sort_keys=True).encode())


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return fs.protocol == "file" or "file" in fs.protocol


def with_retries(what: str, action: Callable[[], T]) -> T:
    """Run an idempotent action, again with growing pauses where it failed for a reason that may pass.

    Raises `JobError` when the last attempt failed too. A missing object (`FileNotFoundError`) and a refused permission
    (`UsageError`) are final at once.
    """
    delay_s = FIRST_DELAY_S
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            return action()
        except _FINAL:
            raise
        except PermissionError as error:
            raise UsageError(f"{what} is not permitted ({error}); check the path and the credentials") from None
        except Exception as error:
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _DRIVERS:
                raise
            if attempt == READ_ATTEMPTS:
                raise JobError(f"{what} failed {attempt} times, last with: {error}") from error
        time.sleep(delay_s)
        delay_s *= 2
    raise AssertionError
