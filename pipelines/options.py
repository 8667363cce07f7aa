"""What the options of several commands have in common."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from corrdiff.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]


def may_change(default: Any) -> Any:
    """A dataclass field that may have another value when a job goes on; every other field is part of its identity."""
    return dataclasses.field(default=default, metadata={"may_change": True})


def identity(config: Any) -> dict[str, Any]:
    """What makes two jobs the same job: all fields of a configuration but those declared with `may_change`."""
    fields = [field.name for field in dataclasses.fields(config) if not field.metadata.get("may_change")]
    values = dataclasses.asdict(config)
    return {name: values[name] for name in fields}


def defaults(kind: type[Any]) -> dict[str, Any]:
    """What the fields of a configuration are where nothing is said: of an option that an older job knew nothing of."""
    return {field.name: field.default for field in dataclasses.fields(kind) if field.default is not dataclasses.MISSING}


def check_positive(config: object, *fields: str) -> None:
    """Raises `UsageError` where one is given and below 1."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and value < 1:
            raise UsageError(f"--{field.replace('_', '-')} must be at least 1, not {value}")
