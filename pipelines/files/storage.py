"""Files on any fsspec URI, the same way everywhere: local paths, s3:// and the rest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import fsspec

from corrdiff.config import BUILTIN_SCHEME
from corrdiff.errors import JobError, UsageError
from corrdiff.uris import has_secret, scheme
from corrdiff.uris import open_fs as open_fs
from pipelines.files.retries import ATTEMPTS, with_retries
from pipelines.files.retries import PATIENT_ATTEMPTS as PATIENT_ATTEMPTS

T = TypeVar("T")

SAMPLE_SCHEME = "sample:"
"""Of pictures that installed packages bring; like `builtin:`, no place in any storage."""

READERS = 16
"""Small files that are read at the same time."""

CHECKSUM, LIST = "checksum", "list"
"""Of a JSON file of our own: the entry that says what the others are, and the one that holds what is no object."""

TEMPORARY = re.compile(r"\.corrdiff-[0-9a-f]{32}\.tmp")
"""The name of a file that is being written on a disk."""

CHUNK_BYTES = 8 << 20
"""Most of an object that one request of `read_range` asks for, so that a broken connection repeats little."""


def absolute(uri: str) -> str:
    """A URI as it is, a local path made absolute, so that a worker elsewhere understands it. No trailing slash.

    Raises `UsageError` for a relative path in a Ray job, whose working directory goes away with the job, and for a URI
    with a password, which would be in logs and in MLflow.
    """
    if has_secret(uri):
        raise UsageError(
            f"{uri.split('://')[0]}://...: leave user, password, token and signature to the environment or a "
            "configuration file"
        )
    if scheme(uri) or uri.startswith((BUILTIN_SCHEME, SAMPLE_SCHEME)):
        return uri.rstrip("/")
    if in_job() and not uri.startswith(("/", "~")):
        raise UsageError(f"'{uri}' would be in the job's temporary directory: give a URI, or a path from the root")
    return os.path.abspath(os.path.expanduser(uri))


def in_job() -> bool:
    """Whether this process was started by Ray's job server."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def join(uri: str, *parts: str) -> str:
    """A place under a directory or prefix."""
    root = uri if uri.endswith("://") else f"{uri.rstrip('/')}/"
    return root + "/".join(parts)


def read_bytes(uri: str, attempts: int = ATTEMPTS) -> bytes:
    """A whole object; transient errors are tried again. Raises `FileNotFoundError` where there is none."""

    def read() -> bytes:
        fs, path = open_fs(uri)
        _check_regular(fs, path)
        data: bytes = fs.cat_file(path)
        return data

    return with_retries(f"reading {uri}", read, attempts)


def read_range(uri: str, start: int, end: int) -> bytes:
    """Bytes [start, end) of an object; after a transient error, goes on from the chunk that failed.

    Raises:
        FileNotFoundError: there is no such object.
        JobError: it ends before `end`, or cannot be read.
    """
    fs, path = open_fs(uri)
    _check_regular(fs, path)

    def chunk(first: int, last: int) -> bytes:
        try:
            data: bytes = fs.cat_file(path, start=first, end=last)
        except FileNotFoundError:
            raise
        except Exception:
            _check_length(fs, path, uri, last)
            raise
        if len(data) != last - first:
            _check_length(fs, path, uri, last)
            raise OSError(f"{len(data):,} of {last - first:,} bytes came")
        return data

    parts = []
    for first in range(start, end, CHUNK_BYTES):
        last = min(first + CHUNK_BYTES, end)
        what = f"reading bytes {first:,} to {last:,} of {uri}"
        parts.append(with_retries(what, lambda a=first, b=last: chunk(a, b), PATIENT_ATTEMPTS))  # type: ignore[misc]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def open_ranges(uri: str, buffer_bytes: int = 1 << 18) -> io.BufferedReader:
    """A file to read from anywhere in, every read of which is tried again as `read_range` does.

    Raises `FileNotFoundError` where there is none.
    """
    fs, path = open_fs(uri)
    _check_regular(fs, path)
    size = with_retries(f"looking for {uri}", lambda: int(fs.info(path)["size"]), PATIENT_ATTEMPTS)
    return io.BufferedReader(_Ranges(uri, size), buffer_bytes)


class _Ranges(io.RawIOBase):
    def __init__(self, uri: str, size: int) -> None:
        self._uri, self._size, self._at = uri, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        data = read_range(self._uri, self._at, end)
        buffer[: len(data)] = data
        self._at = end
        return len(data)


def _check_length(fs: fsspec.AbstractFileSystem, path: str, uri: str, needed: int) -> None:
    """Raises `JobError` where an object is shorter than needed; says nothing where that cannot be known."""
    try:
        fs.invalidate_cache(path)
        size = int(fs.info(path)["size"])
    except FileNotFoundError:
        raise
    except Exception:
        return
    if size < needed:
        raise JobError(f"{uri} is truncated: it ends at byte {size:,}, byte {needed:,} is needed; copy it again")


def _check_regular(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Raises `NotAFileError` for a pipe, a device and the like, which one could wait for for ever."""
    if not is_local(fs):
        return
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # whoever reads says why
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise NotAFileError(errno.EINVAL, "it is a pipe, a device or a socket, and no file", path)


class NotAFileError(IsADirectoryError):
    """Something that has a name in a directory and no bytes."""


def write_bytes(uri: str, data: bytes, attempts: int = ATTEMPTS) -> None:
    """A whole object, visible only when it is complete: renamed into place on local disks, one PUT elsewhere.

    Raises `JobError` where there is no such bucket, or the disk does not take such a name.
    """

    def write() -> None:
        fs, path = open_fs(uri)
        if is_local(fs):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with _beside(path, io.BytesIO(data)) as temporary:
                os.replace(temporary, path)
        else:
            fs.pipe_file(path, data)

    _written(uri, write, attempts)


def write_file(uri: str, source: str, attempts: int = ATTEMPTS) -> None:
    """A file of this machine as an object, as `write_bytes` does, without having it in memory."""

    def write() -> None:
        fs, path = open_fs(uri)
        if is_local(fs):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(source, "rb") as file, _beside(path, file) as temporary:
                os.replace(temporary, path)
        else:
            fs.put_file(source, path)

    _written(uri, write, attempts)


def _written(uri: str, write: Callable[[], T], attempts: int) -> T:
    """What `write` gives; an error that is about the place is a sentence."""
    try:
        return with_retries(f"writing {uri}", write, attempts)
    except FileExistsError:
        raise
    except FileNotFoundError:
        raise JobError(f"cannot write {uri}: there is no such bucket or place") from None
    except (NotADirectoryError, IsADirectoryError):
        raise JobError(
            f"cannot write {uri}: something else of that name, or of a directory's above it, is there"
        ) from None
    except OSError as error:  # what no second attempt helps
        raise JobError(f"cannot write {uri}: {error.strerror or error}") from None


def write_once(uri: str, data: bytes) -> None:
    """A file that must not be there yet with other bytes. Raises `JobError` where it is: it is left alone."""
    if not create_bytes(uri, data) and read_bytes(uri, PATIENT_ATTEMPTS) != data:
        raise JobError(f"{uri} exists, and is none of this job's; move it away, or choose another output")


def create_bytes(uri: str, data: bytes) -> bool:
    """Write an object that must not be there yet; whether it was not. Where storage cannot promise that, the object
    that is there a moment before wins."""
    fs, path = open_fs(uri)

    def create() -> bool:
        if fs.exists(path):
            return False
        if is_local(fs):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with _beside(path, io.BytesIO(data)) as temporary:
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    raise
                except OSError:  # a file system without hard links
                    os.replace(temporary, path)
        else:
            fs.pipe_file(path, data, mode="create")
        return True

    try:
        return _written(uri, create, PATIENT_ATTEMPTS)
    except FileExistsError:
        return False


@contextlib.contextmanager
def _beside(path: str, content: io.BufferedIOBase) -> Iterator[str]:
    """A finished file on the same disk, gone afterwards where it was not renamed. Its name is always short."""
    temporary = os.path.join(os.path.dirname(path), f".corrdiff-{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as f:
            shutil.copyfileobj(content, f, CHUNK_BYTES)
            f.flush()
            os.fsync(f.fileno())
        yield temporary
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def exists(uri: str) -> bool:
    """Whether there is a file or a directory of that name."""
    fs, path = open_fs(uri)
    return bool(with_retries(f"looking for {uri}", lambda: fs.exists(path)))


def is_file(uri: str) -> bool:
    """Whether there is a file of that name."""
    fs, path = open_fs(uri)
    return bool(with_retries(f"looking for {uri}", lambda: fs.isfile(path)))


def list_names(uri: str) -> list[str]:
    """Names directly under a directory, sorted; empty where there is none. Files that are being written are none."""
    fs, path = open_fs(uri)

    def ls() -> list[str]:
        fs.invalidate_cache()
        try:
            return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in fs.ls(path, detail=False))
        except FileNotFoundError:
            return []

    return [name for name in with_retries(f"listing {uri}", ls) if name and not TEMPORARY.fullmatch(name)]


def remove_file(uri: str) -> None:
    """Remove one file, where there is one; nothing else, whatever its name looks like."""
    fs, path = open_fs(uri)

    def remove() -> None:
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)

    with_retries(f"removing {uri}", remove)


def remove_unfinished(uri: str) -> None:
    """Remove from a directory of this machine what nobody writes any more and was not finished."""
    fs, path = open_fs(uri)
    if is_local(fs) and os.path.isdir(path):
        for name in filter(TEMPORARY.fullmatch, os.listdir(path)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(path, name))


def remove_empty(uri: str) -> None:
    """Remove a directory of this machine, where nothing is in it; elsewhere directories are but names of files."""
    fs, path = open_fs(uri)
    if is_local(fs):
        with contextlib.suppress(OSError):
            os.rmdir(path)


def read_json(uri: str) -> Any:
    """The value of a JSON file that `sealed` made, or an older version, which gave it no checksum.

    Raises:
        FileNotFoundError: there is none.
        UsageError: it is not JSON, or not what was written.
    """
    return unsealed(read_bytes(uri), uri)


def unsealed(data: bytes, uri: str) -> Any:
    """What `sealed` was given; `uri` is where it is from, for the sentence that refuses it. Raises as `read_json`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{uri} is damaged: not JSON ({error})") from None
    if not isinstance(value, dict) or (CHECKSUM not in value and LIST not in value):
        return value
    if CHECKSUM not in value:
        raise UsageError(f"{uri} is damaged: it has no checksum")
    checksum = value.pop(CHECKSUM)
    if checksum != _checksum(value):
        raise UsageError(f"{uri} is damaged: it is not what its checksum says")
    return value[LIST] if value.keys() == {LIST} else value


def write_json(uri: str, value: Any) -> None:
    """Write a value as JSON that is checked when it is read."""
    write_bytes(uri, sealed(value))


def sealed(value: Any) -> bytes:
    """JSON with a checksum of what it says; a list becomes the one entry of an object."""
    said = value if isinstance(value, dict) else {LIST: value}
    said = json.loads(to_json(said))  # as it will be read again
    return to_json({**said, CHECKSUM: _checksum(said)})


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode(errors="surrogatepass")).hexdigest()


def to_json(value: Any) -> bytes:
    """JSON that is the same for the same value."""
    return json.dumps(value, indent=1, sort_keys=True).encode()


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is this machine's own."""
    return fs.protocol == "file" or "file" in fs.protocol
