"""Tars as they are found, gzipped or not: their members one after the other, whatever a header claims.

Python's `tarfile` reads each header. It is kept from what a header could make it do: allocate by the size it claims, go
back, or take the first of several tars that were joined for all of them.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterator
from typing import IO, NamedTuple

from corrdiff.errors import UsageError

EXTENSIONS = (".tar", ".tar.gz", ".tgz")

MAX_MEMBER_BYTES = 1 << 31
"""Larger members are no pictures."""
MAX_HEADER_BYTES = 1 << 20
"""Of a name or of PAX records."""
_PIECE_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_BROKEN = (
    tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError, MemoryError, OverflowError, RecursionError, ValueError,
)  # fmt: skip


class BrokenArchiveError(UsageError):
    """What comes next is no member, and not the end."""


class Member(NamedTuple):
    """One file of an archive."""

    name: str
    left_out: str | None
    """Why it has no content of its own; None where it has."""
    read: Callable[[], bytes]
    """Its content; to be called before the next member is asked for. Raises `BrokenArchiveError` if there is less."""
    size: int = 0
    """In bytes, as its header claims."""


def members(file: IO[bytes], name: str) -> Iterator[Member]:
    """All members of a tar that are no directories, also those behind its end where tars were joined.

    `name` says by its ending whether it is gzipped.

    Raises `BrokenArchiveError` where it breaks off, or at a header that is none.
    """
    gzipped = not name.lower().endswith(".tar")
    stream: IO[bytes] = gzip.GzipFile(fileobj=file) if gzipped else file  # type: ignore[assignment]
    start: int | None = 0
    try:
        while start is not None:
            start = yield from _of_one(_Guarded(stream), start)
    except UsageError:
        raise
    except _BROKEN as error:
        raise BrokenArchiveError(str(error) or type(error).__name__) from None


def _of_one(stream: _Guarded, start: int) -> Generator[Member, None, int | None]:
    """The members of the tar that begins at a byte; returns where the next one begins, or None."""
    stream.seek(start)
    contents: dict[str, tarfile.TarInfo] = {}
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        before = start - 1
        while (info := tar.next()) is not None:
            if info.size < 0 or info.offset_data <= before:
                raise tarfile.ReadError(f"the header at byte {info.offset:,} has a size that cannot be")
            before = info.offset_data
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if info.isreg():
                contents[info.name] = info
            if not info.isdir():
                yield _member(stream, info, contents)
        stream.end(tar.offset)
        return stream.next_block(tar.offset)


def _member(stream: _Guarded, info: tarfile.TarInfo, contents: dict[str, tarfile.TarInfo]) -> Member:
    if info.islnk():
        target = contents.get(info.linkname)
        if target is None:
            return Member(info.name, "a hard link to what is not in the tar", bytes)
        return Member(info.name, None, lambda: stream.content(target), target.size)
    if info.issym():
        return Member(info.name, "a symbolic link in a tar", bytes)
    if not info.isreg() or info.issparse():
        return Member(info.name, "a sparse or special file in a tar", bytes)
    return Member(info.name, None, lambda: stream.content(info), info.size)


class _Guarded(io.RawIOBase):
    """A stream that no header makes read more than a header may have."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        return self._stream.read(size)

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not 0 <= offset < 1 << 62:
            raise tarfile.ReadError(f"a header claims that the next is at byte {offset:,}")
        return self._stream.seek(offset, whence)

    def content(self, info: tarfile.TarInfo) -> bytes:
        """The bytes of a member, whatever it claims. Raises `BrokenArchiveError` where they are not there."""
        if info.size > MAX_MEMBER_BYTES:
            raise BrokenArchiveError(f"a member claims {info.size:,} bytes")
        pieces = []
        left = info.size
        try:
            self.seek(info.offset_data)
            while left and (piece := self._stream.read(min(left, _PIECE_BYTES))):
                pieces.append(piece)
                left -= len(piece)
        except _BROKEN as error:
            raise BrokenArchiveError(str(error) or type(error).__name__) from None
        if left:
            raise BrokenArchiveError("unexpected end of data")
        return b"".join(pieces)

    def end(self, offset: int) -> None:
        """A header that is damaged or cut short looks to `tarfile` like the end; raises where it is none."""
        self.seek(offset)
        if self._stream.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError(f"no header and no end at byte {offset:,}")

    def next_block(self, offset: int) -> int | None:
        """Where the first block from there on is that is not all zeros; None where there is none."""
        self.seek(offset)
        zeros = bytes(_BLOCK)
        while block := self._stream.read(_BLOCK):
            if block != zeros[: len(block)]:
                return offset
            offset += len(block)
        return None
