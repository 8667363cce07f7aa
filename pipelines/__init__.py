"""CorrDiff at scale: Ray Data, Ray Train and DeepSpeed around the codec in `corrdiff`.

>>> from pipelines import CompressedPictures, read_compressed
>>> for key, picture in CompressedPictures("compressed", "codec"):   # torch: uint8 [3, H, W]
...     ...
>>> dataset = read_compressed("compressed", "codec")                 # Ray Data: key, image
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.decompress.reader import CompressedPictures as CompressedPictures
    from pipelines.decompress.reader import merge_states as merge_states
    from pipelines.decompress.reader import read_compressed as read_compressed

__all__ = ["CompressedPictures", "merge_states", "read_compressed"]


def __getattr__(name: str) -> Any:
    """Import torch only when a reader is asked for, so that `--help` is quick."""
    if name in __all__:
        from pipelines.decompress import reader

        return getattr(reader, name)
    raise AttributeError(name)
