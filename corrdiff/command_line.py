"""What every command line of this project does: parse options, act, and say errors in one sentence with an exit code.

Nothing heavy is imported here, so that `--help` and `--version` are quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from corrdiff import __version__
from corrdiff.decoders import silence_decoders
from corrdiff.errors import JobError, UsageError, is_out_of_memory

T = TypeVar("T")

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

_TRAINING_PACKAGES = ("compressai",)
"""What the extra 'train' brings; what else can be missing comes with 'cluster'."""


def run_program(commands: Any, prog: str, description: str, argv: Sequence[str] | None = None) -> int:
    """Run the one of several commands that a person named, by its `run()`, and give the exit code.

    What holds for the whole process is set here.
    """
    silence_decoders()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"corrdiff {__version__}")
        return EXIT_OK
    return guarded(
        lambda: _parse(commands, prog, arguments or ["--help"], description).run(),
        "interrupted; the same command goes on from here",
    )


def run_command(options: type[T], prog: str, argv: Sequence[str], action: Callable[[T], int]) -> int:
    """Parse the options of one command, act on them, and give the exit code of what came of it."""
    return guarded(lambda: action(_parse(options, prog, argv)))


def _parse(options: Any, prog: str, argv: Sequence[str], description: str | None = None) -> Any:
    return tyro.cli(
        options,
        prog=prog,
        description=description,
        args=list(argv),
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )


def guarded(action: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run an action and give its exit code, 0 where it names none.

    A `UsageError` gives 2, a `JobError` or too little memory 1, Ctrl-C 130, each with one sentence.
    """
    try:
        return action() or EXIT_OK
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except JobError as error:
        print(f"failed: {error}", file=sys.stderr)
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "corrdiff", "pipelines", "cluster"):
            raise
        print(f"error: {_missing(package)}", file=sys.stderr)
        return EXIT_USAGE
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        print(f"failed: the memory is too small for this{reason and ': '}{reason}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _missing(package: str) -> str:
    extra, part = ("train", "training") if package in _TRAINING_PACKAGES else ("cluster", "cluster")
    return f'this command needs {package}, which comes with the {part} part: pip install "corrdiff[{extra}]"'
