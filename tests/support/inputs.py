"""Tars and tables to compress, and what is planned and read of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.inputs import units
from pipelines.inputs.units import Found, Unit


def tar_of(members: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of these members; where they are pairs, a name may come twice."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def table_of(columns: dict[str, object], group: int | None = None) -> bytes:
    """A Parquet file of these columns, in groups of so many rows."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=group)
    return buffer.getvalue()


def table_of_bytes(rows: int, group: int) -> bytes:
    """A Parquet file of which row i holds the byte i."""
    return table_of({"image": [bytes([i]) for i in range(rows)], "other": list(range(rows))}, group)


def plan(images: object, column: str | None = None, size: int = 4) -> list[Unit]:
    """All units of what an argument names."""
    return list(units.plan_units(str(images), column, size))


def read(planned: list[Unit]) -> list[Found]:
    """All pictures of some units."""
    return [found for unit in planned for found in units.read_pictures(unit)]
