"""Training on a GPU that is not there: nothing mixes devices, the host is hardly waited for, layouts stay.

The forward passes: backward, PyTorch asks the driver for the device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

from corrdiff.codec import CorrDiffCodec
from corrdiff.config import CodecConfig
from corrdiff.networks.model import CorrDiffModel
from pipelines.train.phases.phase1 import Phase1Module
from pipelines.train.phases.phase2 import Phase2Module
from pipelines.train.samples import Sample
from tests.support.fake_gpu import CUDA, Counted, fake_gpu

MOST_COPIES = 2
"""Between host and GPU, in a forward pass."""
BATCH, CROP = 2, 128


@pytest.fixture
def gpu(codec: CorrDiffCodec) -> Iterator[Counted]:  # after what is real
    with fake_gpu() as counted:
        yield counted


def _sample(config: CodecConfig) -> Sample:
    transform, h, u = config.transform, CROP // 16, CROP // 64
    with CUDA:
        return Sample(
            torch.empty(BATCH, 3, CROP, CROP).contiguous(memory_format=torch.channels_last), torch.ones(BATCH),
            torch.zeros(BATCH, dtype=torch.int64), torch.empty(BATCH), torch.empty(BATCH, 3, CROP, CROP),
            torch.empty(BATCH, transform.latent_channels, h, h), torch.empty(BATCH, transform.hyper_channels, u, u),
        )  # fmt: skip


def _assert_fluent(gpu: Counted) -> None:
    assert gpu.copies.total() <= MOST_COPIES, gpu.copies
    assert gpu.convolutions.total() - gpu.convolutions["channels_last"] <= 1, gpu.convolutions


@pytest.mark.parametrize("recomputed", [False, True])
def test_phase_1_keeps_its_layout_and_hardly_waits(gpu: Counted, codec: CorrDiffCodec, recomputed: bool) -> None:
    module = Phase1Module(CorrDiffModel(codec.config), 0.0066, checkpoint_activations=recomputed).to(CUDA)
    sample = _sample(codec.config)
    module(sample, "together", 1.0)  # what is copied once
    gpu.begin()
    assert module(sample, "together", 1.0).device.type == "cuda"
    _assert_fluent(gpu)


def test_phase_2_keeps_its_layout_and_hardly_waits(gpu: Counted, codec: CorrDiffCodec) -> None:
    frozen, other = (CorrDiffModel(codec.config, for_training=False) for _ in range(2))
    on_gpu = CorrDiffCodec(frozen, copy.copy(codec.tables), bytes(8), CUDA)
    module = Phase2Module(on_gpu, other.decoder).to(CUDA)
    sample = _sample(codec.config)
    module(sample, "whole", 1.0)
    gpu.begin()
    assert module(sample, "whole", 1.0).device.type == "cuda"
    _assert_fluent(gpu)
