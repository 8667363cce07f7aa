"""Which pictures a command means: a directory, a glob, one file, names in braces, any fsspec URI, or `sample:`.

What is found and not taken is counted, by reason.
"""

from __future__ import annotations

import heapq
import importlib.util
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import fsspec.utils
from braceexpand import braceexpand

from corrdiff import uris
from corrdiff.errors import UsageError
from corrdiff.images import EXTENSIONS
from pipelines.files import listing, storage
from pipelines.inputs.keys import Keys as Keys
from pipelines.inputs.keys import escaped
from pipelines.inputs.samples import NOTHING, Travels
from pipelines.inputs.sidecars import Name, with_sidecars

_SAMPLES = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle_left": ("skimage", "data/motorcycle_left.png"),
    "motorcycle_right": ("skimage", "data/motorcycle_right.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}

HELD_OUT_SAMPLES = ("chelsea", "coffee")
"""Never part of `sample:train`."""


class Source(NamedTuple):
    """One picture to read."""

    key: str
    """Unique among the pictures of one listing; no dots in its last part: WebDataset ends a key at the first one."""
    uri: str
    problem: str = ""
    """Why it cannot be read, where its name says so; `uri` is then for people."""
    sidecars: tuple[str, ...] = ()
    """Endings of the files that travel with it."""
    mark: int = 0
    """Of its content and these endings: another one where they have changed; 0 where nothing is known."""
    escaped: str = ""
    """The key that it has where another picture has `key` already."""


def iterate(
    images: str, extensions: tuple[str, ...] = EXTENSIONS, left_out: Counter[str] | None = None,
    travels: Travels = NOTHING,
) -> Iterator[Source]:  # fmt: skip
    """The pictures that an argument names, in the order of their URIs, as they are found.

    `sample:` is the colour photographs inside installed packages; `sample:train` and `sample:held-out` are parts of it,
    `sample:NAME` is one. A directory is searched through all levels for the extensions; a glob and a single file are
    taken as they are. Braces (`shards-{0000..0099}.tar`, `photos/{2023,2024}`) stand for all that they expand to. What
    exists under the very name that was given is taken as it is, whatever signs are in it, and so is every directory
    above.

    `left_out` is told, by reason, of the files that are there and are neither taken nor travel with what is taken, as
    `travels` has it: files beside pictures of a directory or a glob.

    Raises `UsageError` where that cannot be listed, or something that braces name is not there.
    """
    if images.startswith(storage.SAMPLE_SCHEME):
        yield from _samples(images.removeprefix(storage.SAMPLE_SCHEME))
        return
    uri = storage.absolute(images)
    keys, skipped = Keys(), Counter() if left_out is None else left_out
    try:
        root, names = _find_all(uri, extensions)
        for name, sidecars, mark in with_sidecars(names, extensions, travels, skipped):
            key, found = keys.of(name), storage.join(root, name)
            shown = found.encode(errors="backslashreplace").decode()
            if shown == found:
                known = listing.mark_of(mark, *sidecars) if mark and sidecars else mark
                yield Source(key, found, "", sidecars, known, escaped(name))
                continue
            skipped.update(["beside a picture whose name is not UTF-8"] * len(sidecars))
            yield Source(key, shown, "its name is not UTF-8; rename it", escaped=escaped(name))
    except OSError as error:
        raise UsageError(f"cannot list {images}: {error}") from None


def left_out_as(name: str, extensions: tuple[str, ...]) -> str | None:
    """Why a file that is found is not taken; None where it is. There are few reasons, whatever the names."""
    base = name.rpartition("/")[2]
    if is_of_macos(name):
        return "macOS's own (._NAME, __MACOSX)"
    if base.lower().endswith(extensions):
        return None
    ending = re.search(r"(\.tar)?\.[a-z0-9_]{1,8}$", base.lower())
    return ending[0] if ending and ending.start() else "without an extension"


def is_of_macos(name: str) -> bool:
    """Whether a file is one that macOS puts beside every other on foreign disks and into its archives."""
    *above, base = name.split("/")
    return base.startswith("._") or "__MACOSX" in above


def _find_all(uri: str, extensions: tuple[str, ...]) -> tuple[str, Iterator[Name]]:
    """Where the names begin, and the files, with braces expanded."""
    start = _as_it_is(uri)
    expanded, directory = [uri[:start] + rest for rest in _expand(uri[start:])], _directory(uri, start)
    if expanded == [uri]:
        return _find(uri, extensions) or (uri, iter(()))
    globs: defaultdict[str, list[str]] = defaultdict(list)  # those of one directory are found in one walk through it
    if directory and "{" not in directory[start:]:
        globs[directory].append(_pattern(uri, start))  # names may have these braces too
    places: list[str] = []
    for each in expanded:
        literal = max(start, _as_it_is(each))
        of_glob = _directory(each, literal)
        if of_glob:
            globs[of_glob].append(_pattern(each, literal))
        else:
            places.append(each)
    with ThreadPoolExecutor(storage.READERS) as pool:
        found = list(pool.map(lambda place: _find(place, extensions), places))
    missing = [place for place, there in zip(places, found, strict=True) if there is None]
    if missing:
        raise UsageError(f"{uri}: of {len(expanded):,} names {len(missing):,} are not there, such as {missing[0]}")
    special = _SPECIAL.search(uri, start)
    root = _parent(uri[: special.start()] if special else uri)
    of_globs = ((directory, _glob(directory, patterns)) for directory, patterns in globs.items())
    parts = [*filter(None, found), *of_globs]
    merged = heapq.merge(*(_seen_from(root, *part) for part in parts), key=lambda n: (n.name, n.reason is not None))
    return root, (next(same) for _, same in itertools.groupby(merged, lambda n: n.name))


_SPECIAL = re.compile(r"[*?\[{]")
"""Signs that may be a pattern's, or just in a name."""


def _as_it_is(uri: str) -> int:
    """How much of a URI exists under that very name, up to a slash or the end: signs in there are none of a pattern."""
    bucket, end = len(f"{scheme}://") if (scheme := uris.scheme(uri)) else 0, 0
    while (sign := _SPECIAL.search(uri, end)) is not None:
        stop = uri.find("/", sign.start())
        end = len(uri) if stop < 0 else stop
        if "/" not in uri[bucket:end] or not storage.exists(uri[:end]):
            return uri.rfind("/", 0, sign.start()) + 1
    return len(uri)


def _seen_from(root: str, directory: str, names: Iterator[Name]) -> Iterator[Name]:
    """Names in a directory as they are under one further up."""
    under = storage.join(root, "")
    return (n._replace(name=storage.join(directory, n.name).removeprefix(under)) for n in names)


def _expand(rest: str) -> list[str]:
    """What braces stand for, in order and once each; what has none, or is no such expression, is itself."""
    try:
        return sorted(set(braceexpand(rest, escape=False)))
    except ValueError:  # braces without their other half
        return [rest]


def _find(uri: str, extensions: tuple[str, ...]) -> tuple[str, Iterator[Name]] | None:
    """Where the names begin, and the files; None where there is nothing."""
    start = _as_it_is(uri)
    directory = _directory(uri, start)
    if directory:
        return directory, _glob(directory, [_pattern(uri, start)])
    if storage.is_file(uri):
        return _parent(uri), iter([Name(uri.rpartition("/")[2], None)])
    if not storage.exists(uri):
        return None
    return uri, (Name(name, left_out_as(name, extensions), mark) for name, mark in listing.walk(uri))


def _directory(uri: str, start: int) -> str | None:
    """Where the files of a glob are, through all levels; None of what is no glob from `start` on."""
    magic = re.compile(r"[*?\[]").search(uri, start)
    return _parent(uri[: magic.start()]) if magic else None


def _pattern(uri: str, start: int) -> str:
    """A regular expression of the URIs that fit; up to `start` nothing stands for anything but itself."""
    return re.escape(uri[:start]) + str(fsspec.utils.glob_translate(uri[start:]))


def _glob(directory: str, patterns: list[str]) -> Iterator[Name]:
    """What fits is taken; what does not is not counted, but may travel with what does."""
    fits = re.compile("|".join(patterns)).fullmatch
    for name, mark in listing.walk(directory):
        if not fits(storage.join(directory, name)):
            yield Name(name, "")
        else:
            yield Name(name, left_out_as(name, ()) if is_of_macos(name) else None, mark)


def _parent(uri: str) -> str:
    """The directory, up to the root of the disk or of the scheme."""
    directory, slash, _ = uri.rpartition("/")
    return f"{directory}{slash}" if directory in ("", uri.partition("://")[0] + ":/") else directory


def left_out_sentence(left_out: Mapping[str, int]) -> str:
    """What was left out, most of it first, to stand behind a sentence; empty where nothing was."""
    if not left_out:
        return ""
    reasons = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    return f", left out: {', '.join(f'{count:,} {reason}' for reason, count in reasons)}"


def list_pictures(images: str, left_out: Counter[str] | None = None) -> list[Source]:
    """All that `iterate` finds. Raises `UsageError` where that is nothing."""
    skipped = Counter() if left_out is None else left_out
    found = list(iterate(images, left_out=skipped))
    if not found:
        raise UsageError(f"no pictures at {images}{left_out_sentence(skipped)} (looked for {', '.join(EXTENSIONS)})")
    return found


def read(source: Source) -> bytes:
    """The bytes of one picture. Raises `OSError` or `JobError` where they cannot be had."""
    if source.problem:
        raise OSError(source.problem)
    return storage.read_bytes(source.uri)


def _samples(which: str) -> list[Source]:
    if which == "":
        names = list(_SAMPLES)
    elif which == "train":
        names = [n for n in _SAMPLES if n not in HELD_OUT_SAMPLES]
    elif which == "held-out":
        names = list(HELD_OUT_SAMPLES)
    elif which in _SAMPLES:
        names = [which]
    else:
        raise UsageError(f"there is no sample '{which}'; there are {', '.join(_SAMPLES)}, and 'train' and 'held-out'")
    return [Source(name, _sample_path(name)) for name in sorted(names)]


def _sample_path(name: str) -> str:
    package, path = _SAMPLES[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UsageError(f"the sample '{name}' comes with the package {package}, which is not installed")
    file = Path(spec.origin).parent / path
    if not file.is_file():
        raise UsageError(f"the package {package} no longer carries {path}")
    return str(file)
