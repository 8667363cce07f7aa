"""The samples of a tar: pictures, and the members that travel with them.

Members that follow each other and share their path up to the first dot of the name are a sample, as WebDataset has it;
a member whose ending the sample has already begins the next one. Where it is not said which picture of a sample is
compressed, each of them is, and a second one of the same kind begins another sample: so tars of pictures whose names
have dots are read as well, a picture at a time.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from corrdiff.errors import UsageError
from corrdiff.images import EXTENSIONS
from corrdiff.uris import redacted
from pipelines.files import storage
from pipelines.inputs import archives
from pipelines.inputs.samples import NOTHING, Allowance, Fields, Found, Travels, Unit, why
from pipelines.inputs.sources import Keys, is_of_macos, left_out_as

MOST_MEMBERS = 512
"""Of a sample, which is in memory as a whole: what has more is no sample, but names that begin alike."""


class _Member(NamedTuple):
    """One file of a sample."""

    name: str
    stem: str
    """Of the sample: its path up to the first dot of the name."""
    ending: str
    """What is behind that dot."""
    is_picture: bool
    """Whether it is to be compressed."""
    data: bytes | None
    """None where it does not travel."""
    reason: str = ""
    """Why it does not."""

    @property
    def kind(self) -> str:
        """The last ending, in small letters."""
        return self.ending.lower().rpartition(".")[2]


def read_tar(unit: Unit, left_out: Counter[str]) -> Iterator[Found]:
    """The pictures of a shard, and samples without one of which something travels; the tar streams through.

    One that breaks off ends with that. `left_out` is told, by reason, of what is no picture and does not travel.
    """
    (uri,), (prefix,) = unit.uris, unit.keys
    named, allowance = _Names(redacted(uri), prefix, unit.travels), Allowance()
    sample: list[_Member] = []
    at: str | None = None  # the member that is being read
    reason = ""
    try:
        with storage.open_ranges(uri, storage.CHUNK_BYTES) as file:
            for member in archives.members(file, uri):
                refused = _refused(member, unit.travels)
                if refused:
                    left_out[refused] += 1
                    continue
                at = member.name
                new = _read(member, unit.travels, allowance)
                if new.reason:
                    left_out[new.reason] += 1
                at = None
                if sample and not _belongs(new, sample, unit.travels):
                    carried = _carried(new, sample)
                    yield from named.found([m for m in sample if m not in carried])
                    sample = carried
                sample.append(new)
    except FileNotFoundError:
        reason = "there is no such file"
    except UsageError as error:
        reason = f"the shard is broken: {error}"
    except OSError as error:
        reason = f"the shard cannot be read: {why(error)}"
    yield from named.found(sample)
    if reason:
        yield named.broken(at, reason)


def _split(name: str) -> tuple[str, str]:
    """The path of a sample and the ending of a member; a name without a dot, or that begins with one, is by itself."""
    directory, slash, base = name.rpartition("/")
    stem, dot, ending = base.partition(".")
    return (f"{directory}{slash}{stem}", ending) if stem and dot else (name, "")


def _is_picture(name: str, travels: Travels) -> bool:
    """Whether a member is compressed."""
    if travels.picture:
        return _split(name)[1].lower() == travels.picture and not is_of_macos(name)
    return left_out_as(name, EXTENSIONS) is None


def _refused(member: archives.Member, travels: Travels) -> str:
    """Why a member is in no sample; empty where it is in one."""
    if not _is_picture(member.name, travels):
        ending = _split(member.name)[1]
        if not ending or is_of_macos(member.name) or not travels.takes(ending):
            return left_out_as(member.name, ()) or ""
    return member.left_out or ""


def _read(member: archives.Member, travels: Travels, allowance: Allowance) -> _Member:
    """Read a member; what travels only where it is not too large."""
    is_picture = _is_picture(member.name, travels)
    refused = "" if is_picture else allowance.refuses(member.size)
    return _Member(member.name, *_split(member.name), is_picture, None if refused else member.read(), refused)


def _belongs(new: _Member, sample: list[_Member], travels: Travels) -> bool:
    """Whether a member is one more of a sample."""
    if new.stem != sample[0].stem or len(sample) >= MOST_MEMBERS:
        return False
    if new.ending.lower() in {m.ending.lower() for m in sample}:
        return False
    return not new.is_picture or bool(travels.picture) or new.kind not in {m.kind for m in sample if m.is_picture}


def _carried(new: _Member, sample: list[_Member]) -> list[_Member]:
    """Of a sample that ends because a second picture of its kind has come, what has the name of that one."""
    beside = NOTHING.beside(new.name)
    if new.stem != sample[0].stem or not new.is_picture or any(m.ending == new.ending for m in sample):
        return []
    return [m for m in sample if not m.is_picture and NOTHING.beside(m.name) == beside]


class _Names:
    """Keys and sources of the samples of one tar."""

    def __init__(self, source: str, prefix: str, travels: Travels) -> None:
        self._source, self._prefix, self._travels = source, prefix, travels
        self._used: set[str] = set()

    def found(self, sample: list[_Member]) -> Iterator[Found]:
        """The pictures of a sample, each with what travels with it, or that it has none."""
        pictures = [m for m in sample if m.is_picture]
        others = [m for m in sample if not m.is_picture]
        if pictures:
            dealt = _dealt(pictures, others, self._travels)
            for picture, fields in zip(pictures, dealt, strict=True):
                name = _short(picture) if self._travels.picture else picture.name
                yield Found(self._key(name), self._of(picture.name), picture.data, "", fields)
        elif any(m.data is not None for m in others):
            stem, kind = others[0].stem, f".{self._travels.picture}" if self._travels.picture else "picture"
            yield Found(
                self._key(_short(others[0])), self._of(stem), None, f"the sample has no {kind}", _fields(others, stem)
            )

    def broken(self, at: str | None, reason: str) -> Found:
        """Where a tar breaks off: in a member, or between two."""
        if at is None:
            return Found(f"{self._prefix}/-", self._source, None, reason)
        return Found(self._key(at), self._of(at), None, reason)

    def _of(self, name: str) -> str:
        return f"{self._source}/{name.encode(errors='replace').decode()}"

    def _key(self, name: str) -> str:
        """The key of a name; where it is taken, with a number."""
        wanted = f"{self._prefix}/{Keys().of(name)}"
        candidates = itertools.chain([wanted], (f"{wanted}-{n}" for n in itertools.count(2)))
        key = next(candidate for candidate in candidates if candidate not in self._used)
        self._used.add(key)
        return key


def _short(member: _Member) -> str:
    """A name without all of its endings but the last: that of the sample, as a key is made of it."""
    return f"{member.stem}.{member.ending.rpartition('.')[2]}"


def _dealt(pictures: list[_Member], others: list[_Member], travels: Travels) -> list[Fields]:
    """What travels with each of the pictures: what has its name and a further ending, the rest with the first."""
    if len(pictures) == 1:
        stem = pictures[0].stem if travels.picture else travels.beside(pictures[0].name) or pictures[0].stem
        inside = all(m.name.startswith(f"{stem}.") for m in others)
        return [_fields(others, stem if inside else pictures[0].stem)]
    stems = [travels.beside(p.name) or p.name for p in pictures]
    shares: list[list[_Member]] = [[] for _ in pictures]
    for m in others:
        owners = [i for i, stem in enumerate(stems) if m.name.startswith(f"{stem}.")]
        shares[max(owners, key=lambda i: len(stems[i]), default=0)].append(m)
    return [_fields(share, p.stem) for p, share in zip(pictures, shares, strict=True)]


def _fields(members: list[_Member], stem: str) -> Fields:
    """What travels, under what its names have behind a stem and a dot."""
    kept = tuple((m.name[len(stem) + 1 :], m.data) for m in members if m.data is not None)
    return Fields(kept, left_out=tuple(f".{m.name[len(stem) + 1 :]} left out: {m.reason}" for m in members if m.reason))
