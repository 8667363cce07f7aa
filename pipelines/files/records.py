"""The small JSON files that jobs leave for themselves: read into dataclasses, and the one that claims a directory."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from corrdiff.errors import UsageError
from pipelines.files import storage

T = TypeVar("T")


def read_record(uri: str, kind: type[T]) -> T:
    """A JSON file as a dataclass or named tuple.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is not JSON, or its fields are not those of `kind`, or are of other types.
    """
    return to_record(storage.read_json(uri), kind, uri)


def to_record(value: Any, kind: type[T], uri: str) -> T:
    """What JSON gave as a dataclass or named tuple; `uri` is where it is from, for the sentence that refuses it.

    Raises `UsageError` where its fields are not those of `kind`, or are of other types.
    """
    any_kind: Any = kind
    adapter = _adapter(any_kind)
    try:
        record: T = adapter.validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{uri} is damaged, or of another version ({where or 'all of it'}: {first['msg']})") from None
    unknown = _unknown(value, adapter.dump_python(record, mode="json"))
    if unknown is not None:
        raise UsageError(f"{uri} is damaged, or of another version (it has a field '{unknown}' that is not known)")
    return record


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def _unknown(given: Any, known: Any) -> str | None:
    """The first field that was given and is not in what came of it."""
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            found = name if name not in known else _unknown(value, known[name])
            if found is not None:
                return str(found)
    if isinstance(given, list) and isinstance(known, list):
        for one, other in zip(given, known, strict=False):
            found = _unknown(one, other)
            if found is not None:
                return found
    return None


def claim(
    uri: str, record: dict[str, Any], holds: str, *, instead: str = "choose another directory",
    absent: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Say whose a directory is, by a file in it that the first of several jobs creates.

    Args:
        uri: the file.
        record: what is to be in it; its entry "identity" says what makes two jobs the same.
        holds: what to say of a directory of another job, say "/out holds another compression".
        instead: what a person can do then.
        absent: what stands for the parts of an identity that the record of an older version does not name.

    Returns:
        The record that counts: this one, or that of an earlier job with the same identity.

    Raises:
        UsageError: the directory is another job's.
    """
    record, known = json.loads(json.dumps([record, dict(absent or {})]))  # as they will be read again
    if storage.create_bytes(uri, storage.sealed(record)):
        return record
    found = storage.read_json(uri)
    if not isinstance(found, dict) or not isinstance(found.get("identity"), dict):
        raise UsageError(f"{uri} is damaged, or of another version (it has no identity)")
    strange = sorted(found.keys() - record.keys())
    if strange:
        raise UsageError(f"{uri} is damaged, or of another version (it has a field '{strange[0]}' that is not known)")
    changed = differences({**known, **found["identity"]}, {**known, **record["identity"]})
    if changed:
        raise UsageError(f"{holds} ({changed}); {instead}")
    return found


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What makes two identities differ, for the sentence that refuses; empty where they are the same."""
    names = sorted(k for k in {*there, *now} if there.get(k) != now.get(k))
    return "; ".join(f"{k}: {_written(there.get(k))} there, {_written(now.get(k))} now" for k in names)


def _written(value: Any) -> str:
    """Write a value as a person would: a whole number without a point, though a file may have 5.0 of it."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else repr(value)
