"""Where in a compressed dataset each picture's file is: the index, sorted by key, and a file by its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff.errors import JobError, UsageError
from pipelines.dataset.format import INDEX, INDEX_COLUMNS, unit_of
from pipelines.files import storage


class Member(NamedTuple):
    """Where one picture's file is."""

    key: str
    part: str
    offset: int
    bytes: int


def find(uri: str, keys: Sequence[str]) -> list[Member]:
    """Where the files of some pictures are; reads only the parts of the index that may name them.

    Raises `UsageError` where a key is not there.
    """
    if not keys:
        return []
    try:
        with storage.open_ranges(storage.join(uri, INDEX)) as file:
            rows = pq.read_table(
                file, columns=list(INDEX_COLUMNS), filters=[("key", "in", list(keys))], page_checksum_verification=True
            ).to_pylist()
    except FileNotFoundError:
        raise UsageError(f"{uri} has no index: the compression is not complete; run it again") from None
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise _damaged_index(uri, error) from None
    found = {row["key"]: Member(**row) for row in rows}
    missing = [key for key in keys if key not in found]
    if missing:
        raise UsageError(f"{uri} has no compressed picture '{missing[0]}' ({len(missing)} of {len(keys)} are missing)")
    return [found[key] for key in keys]


def all_keys(uri: str, since: int = 0) -> Iterator[str]:
    """The keys of all compressed pictures from a unit on, a few at a time in memory.

    Raises `UsageError` where there is no index.
    """
    try:
        with storage.open_ranges(storage.join(uri, INDEX)) as file:
            index = pq.ParquetFile(file, page_checksum_verification=True)
            for batch in index.iter_batches(columns=["key", "part"]):
                places = zip(*(column.to_pylist() for column in batch.columns), strict=True)
                yield from (key for key, part in places if unit_of(part) >= since)
    except FileNotFoundError:
        raise UsageError(f"{uri} has no index: the compression is not complete; run it again") from None
    except (pa.ArrowException, OSError, IndexError, UnicodeDecodeError) as error:
        raise _damaged_index(uri, error) from None


def _damaged_index(uri: str, error: Exception) -> UsageError:
    return UsageError(f"{uri}/{INDEX} is damaged ({type(error).__name__}); copy it again")


def read_member(uri: str, member: Member) -> bytes:
    """A picture's file: its bytes of the part and no others. Raises `JobError` where they are not there."""
    name = storage.join(uri, member.part)
    try:
        return storage.read_range(name, member.offset, member.offset + member.bytes)
    except FileNotFoundError:
        raise JobError(f"part {name} is missing; copy it again") from None
