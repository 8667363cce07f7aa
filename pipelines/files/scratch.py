"""Tables that may be larger than the memory: DuckDB's, on this machine's disk, for as long as a task needs them."""

from __future__ import annotations

import os

import duckdb

MEMORY = "384MiB"
"""Of DuckDB, beyond which it goes to the disk."""


def open_scratch(place: str) -> duckdb.DuckDBPyConnection:
    """An empty database in a new file; what it spills lies beside it."""
    spilled = os.path.dirname(place)
    return duckdb.connect(place, config={"memory_limit": MEMORY, "temp_directory": spilled, "threads": 2})
