"""CorrDiff: a diffusion-based perceptual image codec with a privileged end-to-end decoder (arXiv 2404.04916).

>>> from corrdiff import load_codec
>>> codec = load_codec("runs/demo/codec")
>>> data = codec.compress(image, quality=4, fidelity=0.5)   # uint8 [H, W, 3] -> bytes
>>> picture = codec.decompress(data)
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from corrdiff.codec_directory import load_codec as load_codec

try:
    __version__ = version("corrdiff")
except PackageNotFoundError:
    __version__ = "0.0.0+source"

__all__ = ["__version__", "load_codec"]


def __getattr__(name: str) -> Any:
    """Import torch only when the codec is asked for, so that `--help` and `--version` are quick."""
    if name == "load_codec":
        from corrdiff.codec_directory import load_codec

        return load_codec
    raise AttributeError(name)
