"""The shape of the first codecs; codec directories that are damaged on purpose, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from corrdiff.codec_directory import load_codec
from corrdiff.config import CodecConfig, DenoiserConfig, TransformConfig
from corrdiff.errors import UsageError


def first_codec() -> CodecConfig:
    """Give the shape of the first codecs, which write files of version 1: convolutions alone, no context."""
    return CodecConfig("tiny", TransformConfig(), DenoiserConfig())


def replace_file(directory: Path, name: str, data: bytes) -> None:
    """Put other bytes in a file's place; the file itself may be linked, and stays as it is."""
    (directory / name).unlink()
    (directory / name).write_bytes(data)


def refusal(directory: Path | str) -> str:
    """What is said about the codec, which is one line that names it."""
    with pytest.raises(UsageError) as caught:
        load_codec(str(directory))
    sentence = str(caught.value)
    assert str(directory) in sentence
    assert "\n" not in sentence
    return sentence
