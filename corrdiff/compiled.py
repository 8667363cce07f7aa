"""Loops that numba compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function without Python's lock; keep the machine code where some directory for it can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # a read-only installation and no home
        return numba.njit(nogil=True)(function)
