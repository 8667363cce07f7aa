"""Which of the files in a folder travel with which picture: those that have its name and another ending.

With `a.jpg` go `a.txt` and `a.seg.npy`; where `a.seg.png` is a picture too, `a.seg.npy` goes with that one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from pipelines.inputs import archives
from pipelines.inputs.samples import NONE, NOTHING, Travels

RUN_NAMES = 1 << 16
"""Names that begin alike and are looked at together, some megabytes. Where there are more, those that follow each other
and differ in their ending alone still are; what belongs to a picture further away is left out."""


class Name(NamedTuple):
    """A file that is there."""

    name: str
    reason: str | None
    """Why it is no picture of itself, as it is counted, where it travels with none either; None where it is one, empty
    where it is not counted."""
    mark: int = 0
    """As a listing has it."""


class Picture(NamedTuple):
    """The name of a picture, and the endings of what travels with it."""

    name: str
    sidecars: tuple[str, ...] = ()
    mark: int = 0
    """Of its own file, as a listing has it."""


def with_sidecars(
    names: Iterable[Name], extensions: tuple[str, ...], travels: Travels, left_out: Counter[str]
) -> Iterator[Picture]:
    """The pictures among names that come in the order of their bytes; no more than a run of names is in memory.

    A name that is taken and has none of the `extensions` is a picture only where it travels with none. `left_out` is
    told of the files that are neither.
    """
    if travels.names == (NONE,):
        for found in names:
            yield from _paired([found], extensions, travels, left_out)
        return
    run: list[Name] = []
    prefix = ""
    for found in names:
        if run and not _goes_on(run, prefix, found.name):
            yield from _paired(run, extensions, travels, left_out)
            run = []
        if not run:
            prefix = _first_stem(found.name)
        run.append(found)
    yield from _paired(run, extensions, travels, left_out)


def _first_stem(name: str) -> str:
    """A name up to the first dot of its last part."""
    directory, slash, base = name.rpartition("/")
    return f"{directory}{slash}{base.partition('.')[0]}."


def _goes_on(run: list[Name], prefix: str, name: str) -> bool:
    """Whether a name may belong to one of a run, or one of the run to it."""
    last = NOTHING.beside(run[-1].name)
    return name.startswith(prefix) and (len(run) < RUN_NAMES or (last is not None and name.startswith(f"{last}.")))


def _paired(
    run: list[Name], extensions: tuple[str, ...], travels: Travels, left_out: Counter[str]
) -> Iterator[Picture]:
    pictures = {n.name: list[str]() for n in run if n.reason is None and n.name.lower().endswith(extensions)}
    stems: dict[str, str] = {}
    for name in pictures:
        stem = travels.beside(name)
        if stem is not None and not name.lower().endswith(archives.EXTENSIONS):
            stems.setdefault(stem, name)
    for name, reason, _ in run:
        if name not in pictures:
            owner, ending = _owner(name, stems)
            if owner is not None and travels.takes(ending):
                pictures[owner].append(ending)
            elif reason is None:
                pictures[name] = []
            elif reason:
                left_out[reason] += 1
    yield from (Picture(name, tuple(pictures[name]), mark) for name, _, mark in run if name in pictures)


def _owner(name: str, stems: Mapping[str, str]) -> tuple[str | None, str]:
    """The picture of the longest stem that a name has up to one of its dots, and what is behind that dot."""
    dot = name.rfind(".")
    while dot > name.rfind("/"):
        if name[:dot] in stems:
            return stems[name[:dot]], name[dot + 1 :]
        dot = name.rfind(".", 0, dot)
    return None, ""
