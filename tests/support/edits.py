"""Changes to what JSON holds, for tests of what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Edit = Callable[[dict[str, Any]], object]


def set_at(*path: str, to: Any) -> Edit:
    """Make the edit that puts a value at a path of keys."""

    def edit(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return edit
