"""What is in the parts of a compressed dataset: pictures' files and what travels with them, and the tables beside."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from corrdiff.errors import JobError
from pipelines.dataset.format import TRAVELLED
from pipelines.dataset.units import Record
from pipelines.files import storage
from pipelines.files.tar import read_samples
from pipelines.inputs.samples import DESCRIPTION, OURS, PICTURE, Fields

TABLES_AT_ONCE = 256
"""That are on their way."""


class PictureFile(NamedTuple):
    """A compressed picture, as it lies in a part, and what travels with it."""

    key: str
    data: bytes
    fields: Fields = Fields()


def read_part(uri: str, record: Record) -> list[PictureFile]:
    """All pictures of a part, and the files that travel with them. Raises `JobError` where it is not what was
    written."""
    return read_pictures(uri, record.tar.name, record.tar.sha256)


def read_pictures(uri: str, part: str, sha256: str) -> list[PictureFile]:
    """As `read_part`, of a part whose name and hash are known."""
    data = _read_recorded("part", storage.join(uri, part), sha256)
    return [PictureFile(key, m[PICTURE], _travelled(m)) for key, m in read_samples(data) if PICTURE in m]


def _travelled(members: Mapping[str, bytes]) -> Fields:
    """What travels of the files of a sample; of an older version's, where `json` was the dataset's own, nothing."""
    return Fields(tuple(m for m in members.items() if m[0] not in OURS)) if DESCRIPTION in members else Fields()


def read_part_table(uri: str, record: Record, every_column: bool = False) -> pa.Table:
    """The table of a part, without the columns that travel with the pictures unless they are asked for.

    Raises `JobError` where it is not what was written.
    """
    data = _read_recorded("the table", storage.join(uri, record.parquet.name), record.parquet.sha256)
    if every_column:
        return pq.read_table(io.BytesIO(data))
    own = [field.name for field in pq.read_schema(io.BytesIO(data)) if TRAVELLED not in (field.metadata or {})]
    return pq.read_table(io.BytesIO(data), columns=own).select(own)


def read_tables(uri: str, records: Iterable[Record]) -> Iterator[tuple[Record, pa.Table]]:
    """Records and the tables of their parts, in order; some are read at the same time. Raises as `read_part_table`."""
    waiting = iter(records)
    with ThreadPoolExecutor(storage.READERS) as pool:
        while some := list(itertools.islice(waiting, TABLES_AT_ONCE)):
            yield from zip(some, pool.map(lambda record: read_part_table(uri, record), some), strict=True)


def _read_recorded(what: str, name: str, sha256: str) -> bytes:
    """Read a file that a record names. Raises `JobError`, saying what it is, where it is not what was written."""
    try:
        data = storage.read_bytes(name, storage.PATIENT_ATTEMPTS)
    except FileNotFoundError:
        raise JobError(f"{what} {name} is missing; copy it again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise JobError(f"{what} {name} is damaged: its SHA-256 is not the record's; copy it again")
    return data
