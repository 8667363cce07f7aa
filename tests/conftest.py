"""Untrained codecs and pictures to compress, shared by the fast tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import numpy.typing as npt
import pytest
import torch

from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import load_codec, load_networks, save_codec
from corrdiff.config import QUALITIES, CodecConfig, DenoiserConfig, DiffusionConfig, TransformConfig
from corrdiff.networks.entropy_model import EntropyModel
from corrdiff.networks.model import CorrDiffModel
from tests.support import drawn
from tests.support.codecs import first_codec

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")

# The networks are small, and threads that wait for one another are slow on a busy machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def draw() -> Callable[..., npt.NDArray[np.uint8]]:
    """draw(height, width, seed=0) -> a natural enough picture."""
    return drawn.draw


@pytest.fixture(scope="session")
def codec_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec of the first shape whose symbols are not all zero: untrained, with livelier latents than at the start."""
    torch.manual_seed(0)
    model = CorrDiffModel(first_codec())
    with torch.no_grad():
        model.gain.log_gain_QM.copy_((0.5 + torch.linspace(-0.824, 0.824, QUALITIES))[:, None])
        model.entropy.hyper_analysis.layers[-1].weight.mul_(10.0)
        model.entropy.hyper_synthesis.conv3.weight.mul_(4.0)
    directory = tmp_path_factory.mktemp("codec") / "tiny"
    save_codec(model, model.entropy.freeze(), str(directory), {"made_by": "the tests"})
    return directory


@pytest.fixture(scope="session")
def codec(codec_dir: Path) -> CorrDiffCodec:
    return load_codec(str(codec_dir), precision="fp32")


@pytest.fixture(scope="session")
def sliced_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec of few channels with all that came later: its files are of version 2."""
    torch.manual_seed(0)
    transform = TransformConfig(
        channels=(8, 12, 16), blocks=1, latent_channels=12, hyper_channels=8, slices=(4, 8), context_channels=8,
        lapped=True,
    )  # fmt: skip
    denoiser = DenoiserConfig(
        channels=(8, 12, 16), context_channels=(4, 6, 8), time_channels=16, sees_decoder=True
    )  # fmt: skip
    model = CorrDiffModel(CodecConfig("sliced", transform, denoiser, DiffusionConfig(steps=3, grid=48)))
    with torch.no_grad():
        model.gain.log_gain_QM.add_(1.0)
        model.entropy.hyper_analysis.layers[-1].weight.mul_(10.0)
    directory = tmp_path_factory.mktemp("codec") / "sliced"
    save_codec(model, model.entropy.freeze(), str(directory), {"made_by": "the tests"})
    return directory


@pytest.fixture(scope="session")
def sliced(sliced_dir: Path) -> CorrDiffCodec:
    return load_codec(str(sliced_dir), precision="fp32")


@pytest.fixture(scope="session")
def paper_dir(sliced_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same networks, corrected as the paper has it."""
    model, tables, _ = load_networks(str(sliced_dir))
    model.config = dataclasses.replace(model.config, diffusion=model.config.diffusion.corrected_by("paper"))
    directory = tmp_path_factory.mktemp("codec") / "paper"
    save_codec(model, tables, str(directory), {"made_by": "the tests"})
    return directory


@pytest.fixture(scope="session")
def paper(paper_dir: Path) -> CorrDiffCodec:
    return load_codec(str(paper_dir), precision="fp32")


@pytest.fixture(scope="session")
def small() -> EntropyModel:
    """An entropy model of few channels and lively symbols."""
    torch.manual_seed(0)
    model = EntropyModel(TransformConfig(latent_channels=12, hyper_channels=8))
    with torch.no_grad():
        model.hyper_analysis.layers[-1].weight.mul_(20.0)
        model.hyper_synthesis.conv3.weight.mul_(10.0)
    return model


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """threads(n) sets torch's threads until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
