"""What glibc does with freed memory, on which the speed and the size of the process depend. Elsewhere nothing happens.

By default it hands large blocks back at once and gets them again a moment later, and each new page costs a fault: a
tenth of the time of the networks on a CPU. Of a heap's holes it hands back none: memory would grow with every tile.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30
_LARGEST_BYTES = 1 << 25
"""The largest M_MMAP_THRESHOLD that glibc takes."""


@functools.cache
def keep_freed_memory() -> None:
    """Keep up to a gigabyte for the next tensors, unless the environment says how memory is to be handled."""
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ):
        with contextlib.suppress(AttributeError, OSError):
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
            libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)


def give_back_freed_memory() -> None:
    """Hand all memory that is free back to the system."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
