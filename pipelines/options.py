"""What options of several commands have in common."""

from __future__ import annotations

from typing import Any, Literal

from corrdiff.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """What makes two identities differ, for the sentence that refuses; empty where they are the same."""
    names = sorted(k for k in {*there, *now} if there.get(k) != now.get(k))
    return "; ".join(f"{k}: {there.get(k)!r} there, {now.get(k)!r} now" for k in names)


def check_positive(config: object, *fields: str) -> None:
    """Raises `UsageError` where one is given and below 1."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and value < 1:
            raise UsageError(f"--{field.replace('_', '-')} must be at least 1, not {value}")
