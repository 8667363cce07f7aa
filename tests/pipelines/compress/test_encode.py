from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from corrdiff import coding
from corrdiff.codec import CorrDiffCodec, Pending, Settings
from pipelines.compress.config import CompressConfig
from tests.support.compression import encode_pictures

Picture = npt.NDArray[np.uint8]
Draw = Callable[..., Picture]


def test_pictures_are_encoded_with_the_settings_and_in_their_order(
    codec_dir: Path, codec: CorrDiffCodec, draw: Draw
) -> None:
    pictures = [draw(16, 24, i) for i in range(3)]
    config = CompressConfig(quality=6, fidelity=1.0, steps=1, batch=4, precision="fp32")
    encoded = [e for c in encode_pictures(pictures, str(codec_dir), config) for e in c.pictures]
    expected = codec.compress_batch(pictures, Settings(6, 1.0, 1))
    assert [e.opened.place for e in encoded] == [0, 1, 2]
    assert {e.quality_source for e in encoded} == {"encoder replay"}
    for one, other in zip(encoded, expected, strict=True):
        assert coding.write(one.pending, codec.tables) == other.data
        assert np.array_equal(one.shown, other.reconstruction)


def test_batches_are_of_one_size_and_no_larger_than_asked(
    codec_dir: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[tuple[int, ...]]] = []
    original = CorrDiffCodec.encode_batch

    def spying(self: CorrDiffCodec, images: list[Picture], *rest: Any) -> list[Pending]:
        batches.append([i.shape[:2] for i in images])
        return original(self, images, *rest)

    monkeypatch.setattr(CorrDiffCodec, "encode_batch", spying)
    pictures = [draw(16, 16), draw(16, 20), draw(16, 16), draw(16, 20), draw(16, 16)]
    encode_pictures(pictures, str(codec_dir), CompressConfig(steps=1, batch=2, precision="fp32"))
    assert batches == [[(16, 16)] * 2, [(16, 16)], [(16, 20)] * 2]


def test_verified_pixels_are_those_of_the_decoded_file(codec_dir: Path, codec: CorrDiffCodec, draw: Draw) -> None:
    config = CompressConfig(steps=1, verify="pixels:0.5", precision="fp32")
    pictures = [draw(16, 16, i) for i in range(4)]
    encoded = [e for c in encode_pictures(pictures, str(codec_dir), config) for e in c.pictures]
    sources = {e.opened.key: e.quality_source for e in encoded}
    assert set(sources.values()) == {"decoded file", "encoder replay"}
    for e in encoded:
        assert (sources[e.opened.key] == "decoded file") == config.verifies_pixels(e.opened.key)
    checked = [e for e in encoded if e.quality_source == "decoded file"]
    decoded = codec.decompress_batch([coding.write(e.pending, codec.tables) for e in checked])
    assert all(np.array_equal(e.shown, picture) for e, picture in zip(checked, decoded, strict=True))


def test_a_batch_too_large_for_the_memory_becomes_smaller_ones(
    codec_dir: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CorrDiffCodec.encode_batch

    def little_memory(self: CorrDiffCodec, images: list[Picture], *rest: Any) -> list[Pending]:
        if sum(i.size for i in images) > 16 * 16 * 3:
            raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED\nwith much advice")
        return original(self, images, *rest)

    monkeypatch.setattr(CorrDiffCodec, "encode_batch", little_memory)
    encoded = [e for c in encode_pictures([*[draw(16, 16)] * 3, draw(16, 17)], str(codec_dir)) for e in c.pictures]
    assert [e.error for e in encoded] == [
        "",
        "",
        "",
        "too large for the memory: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ]
    assert [e.pending is None for e in encoded] == [False, False, False, True]
