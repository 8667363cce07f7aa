"""The codec on a GPU that is not there: nothing mixes devices, the host is seldom waited for, layouts stay."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from corrdiff.codec import CorrDiffCodec, Decoding, Settings
from corrdiff.config import CodecConfig
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.networks.model import CorrDiffModel
from tests.support import drawn
from tests.support.fake_gpu import CUDA, Counted, fake_gpu

MOST_COPIES = 12
"""Between host and GPU, for a tile."""
FIRST_LAYERS = 3 + 3
"""What D, the context network, H_a and each evaluation of the score network are given may be in the other layout."""
SETTINGS = Settings(quality=4, fidelity=0.5, steps=3)

Draw = Callable[..., npt.NDArray[np.uint8]]


def _codec(config: CodecConfig, tables: EntropyTables, fingerprint: bytes = bytes(8)) -> CorrDiffCodec:
    return CorrDiffCodec(CorrDiffModel(config, for_training=False), copy.copy(tables), fingerprint, CUDA)


def _assert_seldom_waited_for_and_in_one_layout(gpu: Counted) -> None:
    assert 0 < gpu.copies.total() <= MOST_COPIES, gpu.copies
    other = gpu.convolutions.total() - gpu.convolutions["channels_last"]
    assert other <= FIRST_LAYERS < gpu.convolutions["channels_last"], gpu.convolutions


@pytest.fixture(scope="module")
def files(codec: CorrDiffCodec) -> list[bytes]:
    """Two pictures of one size."""
    return [e.data for e in codec.compress_batch([drawn.draw(128, 192, seed=i) for i in range(2)], SETTINGS)]


@pytest.fixture
def gpu(files: list[bytes]) -> Iterator[Counted]:  # after what is real
    with fake_gpu() as counted:
        yield counted


def test_encoding_waits_for_the_gpu_a_few_times_a_tile(gpu: Counted, codec: CorrDiffCodec, draw: Draw) -> None:
    on_gpu = _codec(codec.config, codec.tables)
    images = [draw(128, 192, seed=i) for i in range(2)]
    on_gpu.encode_batch(images, SETTINGS)  # what is copied once
    gpu.begin()
    on_gpu.encode_batch(images, SETTINGS)
    _assert_seldom_waited_for_and_in_one_layout(gpu)


@pytest.mark.parametrize("decoding", ["corrected", "uncorrected", "privileged"])
def test_decoding_waits_for_the_gpu_a_few_times_a_tile(
    gpu: Counted, codec: CorrDiffCodec, files: list[bytes], decoding: Decoding
) -> None:
    on_gpu = _codec(codec.config, codec.tables, codec.fingerprint)
    on_gpu.decompress_batch(files, decoding)  # what is copied once
    gpu.begin()
    on_gpu.decompress_batch(files, decoding)
    _assert_seldom_waited_for_and_in_one_layout(gpu)


def test_a_preview_waits_for_the_gpu_a_few_times_a_tile(gpu: Counted, codec: CorrDiffCodec, draw: Draw) -> None:
    on_gpu = _codec(codec.config, codec.tables)
    images = [draw(128, 192, seed=i) for i in range(2)]
    latents = on_gpu.latents(images, SETTINGS)
    on_gpu.preview(images, latents, SETTINGS, [3, 4])
    gpu.begin()
    on_gpu.preview(images, latents, SETTINGS, [3, 4])
    _assert_seldom_waited_for_and_in_one_layout(gpu)
