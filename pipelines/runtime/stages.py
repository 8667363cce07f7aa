"""What the pipelines on Ray Data have in common: tasks for rows, chunks that go on at once, codecs in actors."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from corrdiff.errors import JobError, is_out_of_memory

PINNED_DIGITS = 16
"""Of a fingerprint: those that every file carries."""

if TYPE_CHECKING:
    from corrdiff.codec import CorrDiffCodec, Precision

In = TypeVar("In")
Out = TypeVar("Out")


def one_block_each(rows: list[dict[str, Any]]) -> Any:
    """A Ray dataset in which each row is a block, and so a task, of its own."""
    import ray.data

    return ray.data.from_items(rows, override_num_blocks=len(rows))


def each_row_at_once(dataset: Any) -> Any:
    """A Ray dataset as it is, each row of which goes on to the next stage as soon as it is there."""
    dataset.context.target_max_block_size = 1
    return dataset


def rows_as_they_come(dataset: Any) -> Iterator[dict[str, Any]]:
    """The rows of a Ray dataset in any order; each goes on to the next stage as soon as it is there."""
    yield from each_row_at_once(dataset).iter_rows()


def keep_to_one_core(device: str) -> None:
    """Let torch compute in one thread in an actor without a GPU: there is such an actor for each core."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)


def codec_in_actor(uri: str, device: str, precision: Precision | None, fingerprint: str = "") -> CorrDiffCodec:
    """Load the codec of an actor that has a GPU, or a core, to itself.

    Raises `JobError` as `check_pinned`.
    """
    from corrdiff.codec_directory import load_codec

    keep_to_one_core(device)
    codec = load_codec(uri, device, precision)
    check_pinned(uri, codec.fingerprint.hex(), fingerprint)
    return codec


def check_pinned(uri: str, found: str, fingerprint: str) -> None:
    """Raises `JobError` where a codec is not the one with which its job began; an empty fingerprint is any codec's."""
    if found[:PINNED_DIGITS] != (fingerprint or found)[:PINNED_DIGITS]:
        raise JobError(
            f"the codec at {uri} is another one now: the job began with {fingerprint[:PINNED_DIGITS]}, and "
            f"{found[:PINNED_DIGITS]} is there; put the first one back, and run the same command again"
        )


def as_many_as_fit(
    work: Callable[[list[In]], list[Out]], items: list[In], too_large: Callable[[In, str], Out]
) -> list[Out]:
    """Do work on items together or, where the memory is too small for that, on each half of them.

    Args:
        work: what is done; one result for each item.
        items: what it is done on.
        too_large: what becomes of an item that does not fit alone: from it and what was said.
    """
    try:
        return work(items)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().partition("\n")[0]
    # Only here: while an error is handled, its traceback holds all that the attempt had in memory.
    _give_back_memory()
    if len(items) == 1:
        return [too_large(items[0], reason)]
    middle = len(items) // 2
    return [done for half in (items[:middle], items[middle:]) for done in as_many_as_fit(work, half, too_large)]


def _give_back_memory() -> None:
    """Let go of what nothing refers to any more, on the GPU too."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
