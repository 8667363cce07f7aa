"""What is in a unit: pictures, and what travels with each of them.

Of a sample of a tar the other members travel, and the files beside a plain one that share its name, byte for byte; of a
table the columns, with their types.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, NamedTuple

from corrdiff.errors import JobError, UsageError
from corrdiff.uris import redacted, scheme
from pipelines.files import storage
from pipelines.files.retries import ATTEMPTS, NoCredentialsError

MAX_FIELD_BYTES = 1 << 26
"""Of a member, a file beside a picture, or the columns of a row: larger ones do not travel."""
MAX_UNIT_BYTES = 1 << 30
"""Of all that travels with the pictures of a unit, which is in memory as a whole when its part is written."""

ALL, NONE = "all", "none"

PICTURE, DESCRIPTION = "crdf", "crdf.json"
OURS = (PICTURE, DESCRIPTION)
"""Endings that a part has for its own files."""

Kind = Literal["files", "shard", "table"]


class Travels(NamedTuple):
    """What is kept of a sample beside its picture, and which of its pictures is compressed."""

    names: tuple[str, ...] = (NONE,)
    """Columns, or endings of files; or `ALL`, or `NONE`."""
    picture: str = ""
    """The ending of the picture, in small letters; where it is empty, each picture of a sample is compressed."""

    def takes(self, ending: str) -> bool:
        """Whether a file of this ending (`txt`, `seg.png`) travels."""
        small = ending.lower()
        if self.names == (NONE,) or small in OURS or not _is_text(ending):
            return False
        return self.names == (ALL,) or small in {name.lower().lstrip(".") for name in self.names}

    def extensions(self, pictures: tuple[str, ...]) -> tuple[str, ...]:
        """What names of pictures end in."""
        return (f".{self.picture}",) if self.picture else pictures

    def beside(self, name: str) -> str | None:
        """What the names of all begin with that travels with a picture of a name, up to the dot; None of no ending."""
        if self.picture and name.lower().endswith(f".{self.picture}"):
            return name[: -len(self.picture) - 1]
        directory, slash, base = name.rpartition("/")
        stem, dot, _ = base.rpartition(".")
        return f"{directory}{slash}{stem}" if dot and stem else None


NOTHING = Travels()
"""Pictures alone, each of them."""


def _is_text(ending: str) -> bool:
    try:
        return "\0" not in ending and bool(ending.encode())
    except UnicodeEncodeError:
        return False


class Unit(NamedTuple):
    """Some pictures that become one part of the output."""

    kind: Kind
    uris: list[str]
    """Of each picture, or the one of the shard or table."""
    keys: list[str]
    """Of each picture, or the one that those of the shard or table begin with."""
    column: str = ""
    """Of a table: where the paths or bytes are."""
    group: int = 0
    """Of a table: the row group, and the rows in it."""
    first: int = 0
    pictures: int = 0
    """0 where it is not `counted`."""
    problems: list[str] = []  # noqa: RUF012  # a tuple's default, which nobody changes
    """Of each picture, why its name alone says that it cannot be read; none where none does."""
    names: list[str] = []  # noqa: RUF012
    """Of a shard: what travels with its pictures, as in `Travels`; nothing where there are none."""
    picture: str = ""
    """Of a shard or files: the ending of the pictures, as in `Travels`."""
    sidecars: list[list[str]] = []  # noqa: RUF012
    """Of each picture, the endings of the files that travel with it; none where none has any."""
    schema: bytes = b""
    """Of a table: the columns that travel, an Arrow schema; empty where none do."""
    marks: list[int] = []  # noqa: RUF012
    """Of each URI: another number where what it names is not what was planned; none where nothing is known."""
    again: list[str] = []  # noqa: RUF012
    """Where it tries again what has failed: the keys of that; what else it has is done already."""
    units: list[int] = []  # noqa: RUF012
    """Of a shard or table that is tried again: numbers of the units that have read it so far."""

    @property
    def expected(self) -> int:
        """How many pictures are to come of it, where it is `counted`."""
        return len(self.again) or self.pictures

    @property
    def counted(self) -> bool:
        """Whether it is known how many pictures it has: a shard is not opened before its turn."""
        return self.kind != "shard"

    @property
    def keyed(self) -> bool:
        """Whether `keys` has the key of each picture, so that one of them is read without the others."""
        return self.kind == "files"

    @property
    def travels(self) -> Travels:
        """What is kept of a sample of a shard, or which name a file's sidecars have."""
        return Travels(tuple(self.names) or (NONE,), self.picture)


class Fields(NamedTuple):
    """What travels with one picture."""

    members: tuple[tuple[str, bytes], ...] = ()
    """Ending (`txt`, `seg.png`) and content of each file."""
    row: bytes = b""
    """The columns of a table: an Arrow stream of one row; empty where none travel."""
    left_out: tuple[str, ...] = ()
    """What was there and does not travel, and why, for people."""
    metadata: tuple[tuple[str, bytes], ...] = ()
    """Ending and content of what was inside the picture's own file and is kept."""

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.row) + sum(len(data) for _, data in (*self.members, *self.metadata))


class Found(NamedTuple):
    """One picture of a unit, or why it is not there."""

    key: str
    source: str
    """Where it is from, for people."""
    data: bytes | None
    error: str = ""
    fields: Fields = Fields()


class Allowance:
    """What may still travel with the pictures of a unit."""

    def __init__(self) -> None:
        self._left = MAX_UNIT_BYTES

    def refuses(self, size: int) -> str:
        """Why so many bytes do not travel; empty where they do, and then they are taken off."""
        if size > MAX_FIELD_BYTES:
            return f"more than {MAX_FIELD_BYTES >> 20} MiB beside a picture"
        if size > self._left:
            return f"beyond the {MAX_UNIT_BYTES >> 20} MiB that may travel with the pictures of a unit"
        self._left -= size
        return ""


def read_sidecars(stem: str, endings: Iterable[str], allowance: Allowance, left_out: Counter[str]) -> Fields:
    """The files `stem.ENDING`. What is gone, may not be read or is too large is said, and counted in `left_out`.

    Raises `JobError` where storage cannot be reached for long.
    """
    members: list[tuple[str, bytes]] = []
    said: list[str] = []
    for ending in endings:
        data, reason = _read_sidecar(f"{stem}.{ending}", allowance)
        if reason:
            left_out[reason] += 1
            said.append(f".{ending} left out: {reason}")
        else:
            members.append((ending, data))
    return Fields(tuple(members), left_out=tuple(said))


def _read_sidecar(uri: str, allowance: Allowance) -> tuple[bytes, str]:
    """The content, or why it does not travel; what is too large is not read."""
    try:
        with storage.open_ranges(uri) as file:
            reason = allowance.refuses(file.seek(0, 2))
            file.seek(0)
            return (b"", reason) if reason else (file.read(), "")
    except FileNotFoundError:
        return b"", "a file beside a picture that is gone"
    except NoCredentialsError:
        raise
    except (OSError, ValueError, UsageError) as error:
        return b"", f"a file beside a picture: {why(error)}"


def read_file(key: str, source: str, uri: str, problem: str = "") -> Found:
    """A picture that is a file, or why it cannot be read.

    Raises `JobError` where storage cannot be reached for long; a web address is a picture's own.
    """
    source = redacted(source)
    if problem:
        return Found(key, source, None, problem)
    web = scheme(uri) in ("http", "https")
    try:
        return Found(key, source, storage.read_bytes(uri, ATTEMPTS if web else storage.PATIENT_ATTEMPTS))
    except FileNotFoundError:
        return Found(key, source, None, "there is no such file")
    except NoCredentialsError:
        raise
    except (OSError, ValueError) as error:  # no file, or nothing that could be the name of one
        return Found(key, source, None, why(error))
    except JobError as error:
        if not web:
            raise
        return Found(key, source, None, why(error.__cause__ or error))


def why(error: BaseException) -> str:
    """Why a file cannot be read, without its name, which stands beside it: failures are counted by reason."""
    status = getattr(error, "status", None)
    if status is not None:
        return f"the server answers {status}"
    if isinstance(error, UsageError):
        return "reading it is not permitted" if isinstance(error.__cause__, PermissionError) else redacted(str(error))
    if isinstance(error, OSError) and error.strerror and type(error).__module__ == "builtins":
        return error.strerror
    if isinstance(error, storage.NotAFileError):
        return str(error.strerror)
    return f"it cannot be read ({type(error).__name__})" if not isinstance(error, ValueError) else redacted(str(error))
