"""What passes from stage to stage of a compression: some pictures of a unit, in the state that each stage leaves.

    read -> Chunk[Opened] -> encode -> Chunk[WithSymbols] -> code -> Chunk[Done] -> write

No networks are needed to read or to write, and nothing here imports them: the processes of those stages start at once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from corrdiff.picture import Picture
from pipelines.inputs.samples import Fields

if TYPE_CHECKING:  # it brings torch along
    from corrdiff.coding import Pending

P = TypeVar("P")
Q = TypeVar("Q")

STAGES = ("read", "encode", "code", "write")


class Chunk(NamedTuple, Generic[P]):
    """Some pictures of a unit, on their way."""

    unit: int
    pictures: list[P]
    total: int | None
    """How many the unit has; said by its last chunk alone."""
    seconds: dict[str, float]
    """What each stage took for these."""
    left_out: dict[str, int] = {}  # noqa: RUF012  # a tuple's default, which nobody changes
    """Reason -> what the unit has beside pictures; said by its last chunk alone."""

    def after(self, stage: str, pictures: list[Q], started: float) -> Chunk[Q]:
        """The chunk as a stage leaves it that `started` at that reading of `time.perf_counter`."""
        return self._replace(pictures=pictures, seconds={**self.seconds, stage: time.perf_counter() - started})  # type: ignore[return-value,arg-type]


class Opened(NamedTuple):
    """A picture, or why it is none."""

    place: int
    """In its unit."""
    key: str
    source: str
    pixels: Picture | None
    changes: tuple[str, ...] = ()
    error: str = ""
    fields: Fields = Fields()
    """What travels with it."""

    @property
    def size(self) -> int:
        """In pixels; three bytes of what travels with it count as one."""
        pixels = self.pixels.shape[0] * self.pixels.shape[1] if self.pixels is not None else 0
        return pixels + self.fields.size // 3


class WithSymbols(NamedTuple):
    """A picture that the networks are done with, or why they could do nothing with it."""

    opened: Opened
    pending: Pending | None
    shown: Picture | None
    """What the decoder will show."""
    quality_source: str
    error: str = ""


class Done(NamedTuple):
    """A row of the table, and the file where there is one."""

    place: int
    row: dict[str, Any]
    data: bytes | None
    changes: tuple[str, ...] = ()
    fields: Fields = Fields()


class Whole(NamedTuple):
    """A unit whose pictures have all come."""

    pictures: list[Done]
    seconds: dict[str, float]
    """What the stages took for them."""
    left_out: dict[str, int]
    """Reason -> what was in the unit beside pictures."""
