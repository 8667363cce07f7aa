"""Which pictures a command means: a directory, a glob, one file, any fsspec URI, or `sample:`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from corrdiff.errors import UsageError
from corrdiff.images import EXTENSIONS
from pipelines import storage

SAMPLE_SCHEME = "sample:"

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
    """Unique among the pictures of one listing, without dots: WebDataset ends a key at the first one."""
    uri: str


def list_pictures(images: str) -> list[Source]:
    """The pictures that an argument names, sorted by URI.

    `sample:` is the colour photographs inside installed packages; `sample:train` and `sample:held-out` are parts of it,
    `sample:NAME` is one. A directory is searched through all levels for the usual extensions; a glob and a single file
    are taken as they are.

    Raises:
        UsageError: nothing is there.
    """
    if images.startswith(SAMPLE_SCHEME):
        return _samples(images.removeprefix(SAMPLE_SCHEME))
    uri = storage.absolute(images)
    fs, path = storage.open_fs(uri)
    try:
        if any(c in path for c in "*?["):
            found, root = fs.glob(path), path.split("*")[0].split("?")[0].split("[")[0].rsplit("/", 1)[0]
        elif fs.isfile(path):
            found, root = [path], path.rsplit("/", 1)[0]
        else:
            found, root = [p for p in fs.find(path) if p.lower().endswith(EXTENSIONS)], path
    except OSError as error:
        raise UsageError(f"cannot list {images}: {error}") from None
    if not found:
        raise UsageError(f"no pictures at {images} (looked for {', '.join(EXTENSIONS)})")
    uris = [fs.unstrip_protocol(p) if "://" in uri else str(p) for p in sorted(found)]
    names = [str(p).removeprefix(root).lstrip("/") for p in sorted(found)]
    return [Source(key, u) for key, u in zip(_keys(names), uris, strict=True)]


def read(source: Source) -> bytes:
    """The bytes of one picture. Raises `OSError` or `JobError` where they cannot be had."""
    return storage.read_bytes(source.uri)


def _keys(names: list[str]) -> list[str]:
    """Relative paths -> unique keys without dots: the stem, with the extension where stems collide, then a number."""
    stems = [name.rsplit(".", 1)[0].replace(".", "_") for name in names]
    counts: dict[str, int] = {}
    for stem in stems:
        counts[stem] = counts.get(stem, 0) + 1
    used: set[str] = set()
    keys: list[str] = []
    for name, stem in zip(names, stems, strict=True):
        wanted = stem if counts[stem] == 1 else name.replace(".", "_")
        key, n = wanted, 1
        while key in used:
            n += 1
            key = f"{wanted}_{n}"
        used.add(key)
        keys.append(key)
    return keys


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
