"""A pickle that shows whether somebody has executed it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.sprung),)
