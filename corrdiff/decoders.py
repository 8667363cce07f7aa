"""What picture decoders say by themselves, and how a program has them be quiet."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import logging
import warnings
from pathlib import Path


@functools.cache
def silence_decoders() -> None:
    """Keep Pillow's log and warnings, and what libtiff prints, off the terminal of this process.

    What is wrong with a picture is in the `ImageError`. All three are settings of the whole process, so they are for
    programs and their workers to make, and no import of this package makes them. Pillow itself is not imported here.
    """
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", module=r"PIL\.")
    pillow = importlib.util.find_spec("PIL")
    if pillow is None or pillow.origin is None:
        return
    for library in (Path(pillow.origin).parents[1] / "pillow.libs").glob("libtiff*"):  # where its wheels have it
        with contextlib.suppress(OSError, AttributeError):
            libtiff = ctypes.CDLL(str(library))
            libtiff.TIFFSetErrorHandler(None)
            libtiff.TIFFSetWarningHandler(None)
