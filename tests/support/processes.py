"""Other processes of this Python."""

from __future__ import annotations

import os
import subprocess
import sys


def python(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run this Python in another process, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], input=stdin, capture_output=True, text=True, check=False, env=environment
    )
