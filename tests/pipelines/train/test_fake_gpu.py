"""Training on a GPU that is not there: nothing mixes devices, the host is hardly waited for, layouts stay.

The forward passes: backward, PyTorch asks the driver for the device.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import load_codec
from corrdiff.networks.layers import recompute_blocks
from corrdiff.networks.model import CorrDiffModel
from pipelines.train import samples
from pipelines.train.batch import Batch
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.epoch_order import Cursor
from pipelines.train.phases.phase1 import Phase1Module
from pipelines.train.phases.phase2 import Phase2Module
from pipelines.train.phases.phase3 import Phase3Module
from pipelines.train.phases.table import PHASES
from pipelines.train.samples import Packed
from tests.support.fake_gpu import CUDA, fake_gpu

MOST_COPIES = 2
"""Between host and GPU, from a drawn batch to the losses; the batch itself is one."""
CORNER = {"transforms": 0, "score": 6, "together": 0, "whole": 0}
"""Convolutions in the other layout: of a corner of one latent, for which the two are the same."""
BATCH, CROP = 2, 128
CONFIG = TrainConfig(shards="shards")
STRETCHES = [(name, i) for name, phase in PHASES.items() for i, _ in enumerate(phase.stretches(CONFIG))]


@pytest.fixture(scope="module", params=["first", "sliced"])
def real(request: pytest.FixtureRequest, codec: CorrDiffCodec, sliced_dir: Path) -> CorrDiffCodec:
    """A codec of either shape, on the CPU."""
    return codec if request.param == "first" else load_codec(str(sliced_dir), precision="fp32")


def _drawn(codec: CorrDiffCodec, noise: tuple[samples.Noise, ...]) -> Packed:
    pixels = np.zeros((BATCH, CROP, CROP, 3), np.uint8)
    batch = Batch(0, ["a"] * BATCH, pixels, np.ones(BATCH, np.float32), BATCH, Cursor(0, 0), 0)
    return samples.pack(batch, 0, CROP, codec.config.transform, noise)


def _module(name: PhaseName, codec: CorrDiffCodec) -> nn.Module:
    """Build on the GPU what a phase trains."""
    if name == "phase1":
        return Phase1Module(CorrDiffModel(codec.config), CONFIG.beta).to(CUDA)
    frozen, other = (CorrDiffModel(codec.config, for_training=False) for _ in range(2))
    on_gpu = CorrDiffCodec(frozen, copy.copy(codec.tables), bytes(8), CUDA)
    if name == "phase2":
        return Phase2Module(on_gpu, other.decoder).to(CUDA)
    return Phase3Module(on_gpu, other, CONFIG).to(CUDA)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize(("name", "number"), STRETCHES)
def test_a_step_keeps_its_layout_and_hardly_waits(
    name: PhaseName, number: int, recomputed: bool, real: CorrDiffCodec
) -> None:
    stretch = PHASES[name].stretches(CONFIG)[number]
    drawn = _drawn(real, stretch.noise)
    with fake_gpu() as gpu:
        module = _module(name, real)
        if recomputed:
            recompute_blocks(module)
        for _ in range(2):
            gpu.begin()  # the first time some constants are copied
            sample = drawn._replace(data=drawn.data.to(CUDA)).sample()
            assert all(column.device.type == "cuda" for column in sample)
            assert module(sample, stretch.name, 1.0).device.type == "cuda"
        assert gpu.copies.total() <= MOST_COPIES, gpu.copies
        other = gpu.convolutions.total() - gpu.convolutions["channels_last"]
        assert other <= CORNER[stretch.name], gpu.convolutions
        assert gpu.convolutions["channels_last"] > 10
