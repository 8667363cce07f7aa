"""Which pictures a command means: a directory, a glob, one file, names in braces, any fsspec URI, or `sample:`."""

from __future__ import annotations

import hashlib
import heapq
import importlib.util
import itertools
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import fsspec.utils
from braceexpand import braceexpand

from corrdiff.errors import UsageError
from corrdiff.images import EXTENSIONS
from pipelines.files import listing, storage

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


class Keys:
    """Names that come in the order of their bytes -> keys, remembering no more than the run of names that is open.

    A name without its extension; where that is taken, has dots, or is no proper path, or where there is no extension, a
    hash of the name is added.
    """

    def __init__(self) -> None:
        self._open: set[str] = set()
        """Stems of which more names may come: those all begin with the stem and a dot, so they come in one run."""

    def of(self, name: str) -> str:
        """The key of the name that comes next."""
        directory, slash, base = name.rpartition("/")
        stem, dot, _ = base.rpartition(".")
        stem = f"{directory}{slash}{stem if dot else base}"
        self._open = {known for known in self._open if name.startswith(f"{known}.")}
        parts = stem.split("/")
        proper = [part if part not in ("", ".", "..") else "_" for part in parts]
        proper[-1] = proper[-1].replace(".", "_")
        key = "/".join(proper)
        if not dot or proper != parts or stem in self._open:
            key = f"{key}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
        self._open.add(stem)
        return key


def iterate(images: str, extensions: tuple[str, ...] = EXTENSIONS) -> Iterator[Source]:
    """The pictures that an argument names, in the order of their URIs, as they are found.

    `sample:` is the colour photographs inside installed packages; `sample:train` and `sample:held-out` are parts of it,
    `sample:NAME` is one. A directory is searched through all levels for the extensions; a glob and a single file are
    taken as they are. Braces (`shards-{0000..0099}.tar`, `photos/{2023,2024}`) stand for all that they expand to,
    unless there is something of that very name.

    Raises `UsageError` where that cannot be listed, or something that braces name is not there.
    """
    if images.startswith(storage.SAMPLE_SCHEME):
        yield from _samples(images.removeprefix(storage.SAMPLE_SCHEME))
        return
    uri = storage.absolute(images)
    keys = Keys()
    try:
        root, names = _find_all(uri, extensions)
        for name in names:
            if not name.isprintable() and name.encode(errors="ignore").decode() != name:
                raise UsageError(f"{root}: the name of {name!a} is not UTF-8; rename it")
            yield Source(keys.of(name), storage.join(root, name))
    except OSError as error:
        raise UsageError(f"cannot list {images}: {error}") from None


def _find_all(uri: str, extensions: tuple[str, ...]) -> tuple[str, Iterator[str]]:
    """Where the names begin, and the names of the files, with braces expanded."""
    expanded, directory = _expand(uri), _directory(uri)
    if expanded == [uri] or ("{" in (directory or uri) and storage.exists(directory or uri)):
        return _find(uri, extensions) or (uri, iter(()))
    globs: defaultdict[str, list[str]] = defaultdict(list)  # those of one directory are found in one walk through it
    if directory and "{" not in directory:
        globs[directory].append(uri)  # names may have these braces too
    places: list[str] = []
    for each in expanded:
        of_glob = _directory(each)
        (globs[of_glob] if of_glob else places).append(each)
    with ThreadPoolExecutor(storage.READERS) as pool:
        found = list(pool.map(lambda place: _find(place, extensions), places))
    missing = [place for place, there in zip(places, found, strict=True) if there is None]
    if missing:
        raise UsageError(f"{uri}: of {len(expanded):,} names {len(missing):,} are not there, such as {missing[0]}")
    root = _parent(re.split(r"[*?\[{]", uri)[0])
    parts = [*filter(None, found), *((directory, _glob(directory, patterns)) for directory, patterns in globs.items())]
    return root, (name for name, _ in itertools.groupby(heapq.merge(*(_seen_from(root, *part) for part in parts))))


def _seen_from(root: str, directory: str, names: Iterator[str]) -> Iterator[str]:
    """Names in a directory as they are under one further up."""
    return (storage.join(directory, name).removeprefix(storage.join(root, "")) for name in names)


def _expand(uri: str) -> list[str]:
    """What braces stand for, in order and once each; a URI without, or with what is no such expression, is itself."""
    try:
        return sorted(set(braceexpand(uri, escape=False)))
    except ValueError:  # braces without their other half
        return [uri]


def _find(uri: str, extensions: tuple[str, ...]) -> tuple[str, Iterator[str]] | None:
    """Where the names begin, and the names of the files; None where there is nothing."""
    directory = _directory(uri)
    if directory:
        return directory, _glob(directory, [uri])
    if storage.is_file(uri):
        return _parent(uri), iter([uri.rpartition("/")[2]])
    if not storage.exists(uri):
        return None
    return uri, (name for name in listing.walk(uri) if name.lower().endswith(extensions))


def _directory(uri: str) -> str | None:
    """Where the files of a glob are, through all levels; None of what is no glob."""
    magic = re.search(r"[*?\[]", uri)
    return _parent(uri[: magic.start()]) if magic else None


def _glob(directory: str, patterns: list[str]) -> Iterator[str]:
    fits = re.compile("|".join(map(fsspec.utils.glob_translate, patterns))).fullmatch
    return (name for name in listing.walk(directory) if fits(storage.join(directory, name)))


def _parent(uri: str) -> str:
    """The directory, up to the root of the disk or of the scheme."""
    directory, slash, _ = uri.rpartition("/")
    return f"{directory}{slash}" if directory in ("", uri.partition("://")[0] + ":/") else directory


def list_pictures(images: str) -> list[Source]:
    """All that `iterate` finds. Raises `UsageError` where that is nothing."""
    found = list(iterate(images))
    if not found:
        raise UsageError(f"no pictures at {images} (looked for {', '.join(EXTENSIONS)})")
    return found


def read(source: Source) -> bytes:
    """The bytes of one picture. Raises `OSError` or `JobError` where they cannot be had."""
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
