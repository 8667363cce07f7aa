"""Names of files -> keys of pictures, one to one."""

from __future__ import annotations

import re


class Keys:
    """Names that come in the order of their bytes -> keys, remembering no more than the run of names that is open.

    A name without its extension is its key. Where that is taken, has dots, is no proper path, or where there is no
    extension, the key is the whole name with `=` and hexadecimal digits for what a key cannot have: `a=2Epng` for
    `a.png`. No two names have one key: the first kind of key has no `=`, the second can be read back.
    """

    def __init__(self) -> None:
        self._open: set[str] = set()
        """Stems of which more names may come: those all begin with the stem and a dot, so they come in one run."""

    def of(self, name: str) -> str:
        """The key of the name that comes next."""
        directory, slash, base = name.rpartition("/")
        stem, dot, _ = base.rpartition(".")
        stem = f"{directory}{slash}{stem}"
        self._open = {known for known in self._open if name.startswith(f"{known}.")}
        if not dot or stem in self._open or not _is_plain(stem):
            return escaped(name)
        self._open.add(stem)
        return stem


_NO_KEY = re.compile(r"[=\0\ud800-\udfff]")
_TARS = (".tar", ".tgz", ".tar.gz")
"""A directory of such a name has a key that is none of a tar's."""


def _is_plain(stem: str) -> bool:
    """Whether a key may be this path itself."""
    *above, last = stem.split("/")
    proper = all(part not in ("", ".", "..") for part in (*above, last))
    return proper and "." not in last and not _NO_KEY.search(stem) and not any(p.lower().endswith(_TARS) for p in above)


def escaped(name: str) -> str:
    """The key of a name that has no shorter one: no other name has it, and no stem is it."""
    *above, last = name.split("/")
    ended = _NO_KEY.sub(_code, last).replace(".", _code(".")) if last else _code("/")
    return "/".join([*map(_escaped_directory, above), ended if "." in last else f"{ended}="])


def _escaped_directory(part: str) -> str:
    if not part:
        return _code("/")
    coded = _NO_KEY.sub(_code, part)
    return coded.replace(".", _code(".")) if part in (".", "..") or part.lower().endswith(_TARS) else coded


def _code(character: re.Match[str] | str) -> str:
    number = ord(character if isinstance(character, str) else character[0])
    return f"={number:02X}" if number < 128 else f"=u{number:04X}"
