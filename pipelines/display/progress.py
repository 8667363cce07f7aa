"""Progress that a person sees: a rich bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, TypeVar

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 5.0
"""Time between two lines of progress, where there is no terminal to draw a bar on."""

WORST_REASONS = 5
"""Lines that are printed of a long list of what went wrong."""

console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
if not console.is_terminal:
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, width=120)

T = TypeVar("T")


class Progress(NamedTuple):
    """How far a long command is."""

    done: int
    """Counted from where the whole job, not this process, began."""
    total: int
    unit: str
    """What is counted, in the plural."""
    note: str = ""


def show(title: str, steps: Generator[Progress, None, T]) -> T:
    """Run a long command to its end and show the progress that it yields; returns its result."""
    result: list[T] = []

    def kept() -> Iterator[Progress]:
        result.append((yield from steps))

    progress = kept()
    for first in progress:
        with display(title, first.total, first.unit) as shown:
            for step in itertools.chain([first], progress):
                shown.update(step.done, step.note)
    return result[0]


class Display:
    """The display of one long step: how many of how many, how fast, how long still."""

    def __init__(self, title: str, total: int, unit: str, bar: rich.progress.Progress | None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._bar = bar
        self._task = bar.add_task(title, total=total, rate="", note="") if bar else None
        self._started = time.monotonic()
        self._first: int | None = None
        self._last_line = 0.0
        self._last_done = -1

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the total are done, counted from where the whole job, not this process, began."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        elapsed = now - self._started
        per_s = (done - self._first) / elapsed if elapsed > 0 else 0.0
        rate = f"{per_s:.1f} {self.unit}/s" if per_s else ""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, rate=rate, note=note)
        elif done != self._last_done and (done == self.total or now - self._last_line >= LINE_EVERY_S):
            left = f", {_clock((self.total - done) / per_s)} left" if per_s and done < self.total else ""
            extra = f", {note}" if note else ""
            speed = f", {rate}" if rate else ""
            console.print(f"{self.title}: {done:,} of {self.total:,} {self.unit}{speed}{left}{extra}")
            self._last_line, self._last_done = now, done


class Pace:
    """How fast something that is counted grows, since the first look."""

    def __init__(self, first: float) -> None:
        self._first, self._started = first, time.monotonic()

    def of(self, now: float) -> float:
        """By how much it has grown a second, now that it is `now`."""
        return (now - self._first) / max(time.monotonic() - self._started, 1e-9)


@contextlib.contextmanager
def display(title: str, total: int, unit: str) -> Iterator[Display]:
    """Show progress while the block runs."""
    if not console.is_terminal:
        yield Display(title, total, unit, None)
        return
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )  # fmt: skip
    with rich.progress.Progress(*columns, console=console) as bar:
        yield Display(title, total, unit, bar)


def _clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def print_first(lines: Sequence[str], file: str) -> None:
    """Print the first lines of a list of what went wrong, and say how many more are in `file`."""
    for line in lines[:WORST_REASONS]:
        console.print(f"  {line}")
    if len(lines) > WORST_REASONS:
        console.print(f"  ... and {len(lines) - WORST_REASONS} more, all in {file}")
