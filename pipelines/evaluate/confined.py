"""A program that a person named, run on a file: without a shell, writing in one directory alone, for so long, and with
nothing left running.

Where the kernel has Landlock (Linux 5.13), writing elsewhere is refused to the program and to all that it starts; where
it has not, programs are trusted with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import resource
import secrets
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

MOST_PRINTED_BYTES = 1 << 20
"""A program that says more is ended."""
MOST_FILE_BYTES = 1 << 32
"""Of a file that it writes; at more it is ended too."""
TAIL_BYTES = 4096
"""Of what it said, for the sentence that tells why it failed."""

TOKEN = "CORRDIFF_CONFINED"
"""The variable by which what a program started is found, wherever it went."""

SWEEPS = 100
"""How often it is looked whether something was started meanwhile by what is being ended."""


class Ran(NamedTuple):
    """What a program took."""

    seconds: float
    peak_bytes: int | None
    """The most memory that was seen in use; None of a program that was gone before it was looked at."""


def run(argv: Sequence[str], directory: Path, limit_s: float) -> Ran:
    """Run a program in a directory, to its end.

    Its HOME and TMPDIR are that directory too, and nothing is there to be read from standard input.

    Raises:
        OSError: it is not there, failed, took longer than `limit_s`, or printed more than MOST_PRINTED_BYTES; a
            sentence that begins with the program's name.
    """
    token = secrets.token_hex(16)
    places = {"HOME": str(directory), "TMPDIR": str(directory), TOKEN: token}
    name = Path(argv[0]).name
    started = time.perf_counter()
    with _started(argv, directory, {**os.environ, **places}) as process:
        try:
            printed, peak_bytes = _watch(process, name, limit_s)
        finally:
            seconds = time.perf_counter() - started
            _end(process, token)
    if process.returncode < 0:
        raise OSError(f"{name} was ended by {signal.Signals(-process.returncode).name}{_said(printed)}")
    if process.returncode > 0:
        raise OSError(f"{name} failed with exit code {process.returncode}{_said(printed)}")
    return Ran(seconds, peak_bytes)


def _said(printed: bytes) -> str:
    """The last line of what was printed, in characters that a table can show."""
    lines = [line.strip() for line in printed.decode(errors="replace").splitlines() if line.strip()]
    said = "".join(c if c.isprintable() else " " for c in lines[-1])[-300:] if lines else ""
    return f": {said}" if said else ""


def _started(argv: Sequence[str], directory: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a program from a thread of its own: what is forbidden to a thread is forbidden to its programs alone."""
    found: list[subprocess.Popen[bytes] | OSError] = []

    def start() -> None:
        try:
            _forbid_writing_outside(directory)
            found.append(
                subprocess.Popen(
                    argv, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, start_new_session=True, bufsize=0,
                )
            )  # fmt: skip
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    (process,) = found
    if isinstance(process, OSError):
        raise OSError(f"{Path(argv[0]).name} cannot be run: {process.strerror}") from None
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))
    return process


def _watch(process: subprocess.Popen[bytes], name: str, limit_s: float) -> tuple[bytes, int | None]:
    """Wait until a program has ended, and give the end of what it printed and the most memory that was seen.

    What it started may go on and hold its output: that is not waited for.
    """
    deadline = time.perf_counter() + limit_s
    printed, total, peak_bytes, pause = b"", 0, None, 0.001
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(ended, selectors.EVENT_READ)
            while True:
                peak_bytes = max(filter(None, (peak_bytes, _peak_bytes(process.pid))), default=None)
                wait = min(pause, max(0.0, deadline - time.perf_counter()))
                ready = {key.fileobj for key, _ in selector.select(wait)}
                pause = min(2 * pause, 0.05)
                if process.stdout in ready:
                    part = process.stdout.read(1 << 16)
                    total += len(part or b"")
                    printed = (printed + (part or b""))[-TAIL_BYTES:]
                    if part == b"":
                        selector.unregister(process.stdout)
                    if total > MOST_PRINTED_BYTES:
                        raise OSError(f"{name} printed more than {MOST_PRINTED_BYTES >> 20} MiB and was ended")
                elif ended in ready:
                    return printed, peak_bytes
                if time.perf_counter() > deadline:
                    raise OSError(f"{name} took longer than {limit_s:g} s and was ended")
    finally:
        os.close(ended)


def _peak_bytes(pid: int) -> int | None:
    """The most memory that a process had so far."""
    with contextlib.suppress(OSError, IndexError):
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    return None


def _end(process: subprocess.Popen[bytes], token: str) -> None:
    """End a program, its group, and whatever it started that left the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(SWEEPS):
        left = list(_carrying(token))
        if not left:
            return
        for one in left:
            with contextlib.suppress(psutil.Error):
                one.kill()
        psutil.wait_procs(left, timeout=0.1)


def _carrying(token: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(TOKEN) == token:
                yield process


# --- Landlock: https://docs.kernel.org/userspace-api/landlock.html

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_NO_NEW_PRIVILEGES = 38

_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 13))
_REFER = 1 << 13
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/tty")
"""What programs write to that is no place."""


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("directory", ctypes.c_int32)]


@functools.cache
def may_forbid() -> bool:
    """Whether the kernel can keep a program's writing to a directory."""
    return _call(_CREATE_RULESET, None, 0, _VERSION) > 0


def _forbid_writing_outside(directory: Path) -> None:
    """Keep the calling thread, and whatever it starts, from writing anywhere else from now on."""
    if not may_forbid():
        return
    version = _call(_CREATE_RULESET, None, 0, _VERSION)
    rights = _WRITE_FILE | _MAKE_AND_REMOVE | (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    handled = ctypes.c_uint64(rights)
    rules = _call(_CREATE_RULESET, ctypes.byref(handled), ctypes.sizeof(handled), 0)
    try:
        _allow(rules, str(directory), rights)
        for device in filter(os.path.exists, _DEVICES):
            _allow(rules, device, rights & (_WRITE_FILE | _TRUNCATE))
        _library().prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        if _call(_RESTRICT_SELF, rules, 0):
            raise OSError(ctypes.get_errno(), "writing elsewhere cannot be forbidden to it")
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _call(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(_Beneath(rights, opened)), 0)
    finally:
        os.close(opened)


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(number: int, *arguments: object) -> int:
    return int(_library().syscall(number, *arguments))
