"""What these commands raise, and what a person sees of it: one sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

T = TypeVar("T")

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class UsageError(Exception):
    """The command, or what it is to work on, is wrong."""


class JobError(Exception):
    """The work itself failed."""


def run_command(options: type[T], prog: str, argv: Sequence[str], action: Callable[[T], int]) -> int:
    """Parse a command's options, act on them, and give the exit code of what came of it."""
    try:
        return action(tyro.cli(options, prog=prog, args=list(argv)))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except JobError as error:
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
