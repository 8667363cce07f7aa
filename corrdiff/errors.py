"""What a person is told about in one sentence: two kinds of failure, and too little memory."""

from __future__ import annotations


class UsageError(ValueError):
    """Something the caller gave is wrong: a file, an option, a codec. The command line exits with 2."""


class JobError(RuntimeError):
    """A job that was asked for correctly has failed. The command line exits with 1."""


_TOO_LITTLE_MEMORY = (
    "out of memory", "defaultcpuallocator", "alloc_failed", "allocation_failed", "unable to find an engine",
    "unable to find a valid cudnn algorithm",
)  # fmt: skip
"""What PyTorch's own allocators say, cuBLAS and cuDNN of theirs, and cuDNN where no algorithm's workspace fits."""


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the memory of this machine, or of its GPU, was too little.

    Told by its words: only PyTorch's own allocator for GPUs has a type of error for it.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, JobError):
        return isinstance(error, MemoryError)
    said = str(error).lower()
    return any(words in said for words in _TOO_LITTLE_MEMORY)
