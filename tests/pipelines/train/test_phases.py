"""What every phase gives to the loop, the export and the command line fits together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from corrdiff import trajectory
from corrdiff.codec_directory import codec_weights, load_codec, load_networks, read_config
from corrdiff.correction import Parts, coarse_part
from corrdiff.diffusion import sampling_times
from corrdiff.errors import UsageError
from corrdiff.format.noise import format_noise
from corrdiff.tiling import Layout
from pipelines.train import samples
from pipelines.train.batch import Batch
from pipelines.train.checkpoints import trained_parameters
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.epoch_order import Cursor
from pipelines.train.phases.phase3 import Phase3Module
from pipelines.train.phases.table import PHASES
from pipelines.train.samples import NOISE, Noise, Sample

CPU = torch.device("cpu")

STRETCHES = [
    (name, number)
    for name, phase in PHASES.items()
    for number, _ in enumerate(phase.stretches(TrainConfig(shards="shards")))
]

every_phase = pytest.mark.parametrize("name", PHASES)


class NoFactors:
    """Factors that take nothing of D."""

    planes = 2

    def at(self, step: int, parts: Parts) -> torch.Tensor:
        return torch.zeros(len(parts.xhat0_BCHW), len(parts.planes), 1, 1)


@pytest.fixture(scope="module")
def codec_dir(sliced_dir: Path) -> Path:
    """A codec that has all groups of weights."""
    return sliced_dir


def config_of(codec_dir: Path) -> TrainConfig:
    return TrainConfig(shards="shards", init_from=str(codec_dir))


@pytest.fixture(scope="module")
def sample(codec_dir: Path) -> Sample:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    batch = Batch(0, ["a", "b"], pixels, np.ones(2, np.float32), 2, Cursor(0, 0), 0)
    return samples.draw(batch, 0, 64, read_config(str(codec_dir))[0].transform, CPU)


@every_phase
def test_a_phase_stands_under_its_name_after_the_one_that_it_follows(name: PhaseName) -> None:
    phase, order = PHASES[name], list(PHASES)
    assert phase.name == name
    assert phase.follows is None or order.index(phase.follows) < order.index(name)


@every_phase
def test_a_phase_has_stretches_that_make_up_a_run_and_move_groups_that_it_has(name: PhaseName, codec_dir: Path) -> None:
    phase, config = PHASES[name], config_of(codec_dir)
    groups = {phase.group(parameter) for parameter, _ in trained_parameters(phase.module(config, CPU, None))}
    stretches = phase.stretches(config)
    assert sum(stretch.share for stretch in stretches) == pytest.approx(1)
    assert set().union(*(stretch.peaks for stretch in stretches)) == groups
    assert all(stretch.peaks and min(stretch.peaks.values()) > 0 for stretch in stretches)


@pytest.mark.parametrize(("name", "number"), STRETCHES)
def test_a_module_gives_a_column_a_term_and_every_trained_weight_a_gradient_that_is_nothing_where_it_stands_still(
    name: PhaseName, number: int, codec_dir: Path, sample: Sample
) -> None:
    phase, config = PHASES[name], config_of(codec_dir)
    stretch = phase.stretches(config)[number]
    module = phase.module(config, CPU, None)
    terms = module(sample, stretch.name, 1.0)
    assert terms.shape == (2, len(phase.terms))
    terms[:, 0].sum().backward()
    for parameter, weight in trained_parameters(module):
        assert weight.grad is not None, parameter
        if phase.group(parameter) not in stretch.peaks:
            assert not weight.grad.any(), parameter
    moved = {
        phase.group(n) for n, weight in trained_parameters(module) if weight.grad is not None and weight.grad.any()
    }
    assert moved == stretch.peaks.keys()
    assert stretch.terms[0] == phase.terms[0] == "loss"
    assert [term for term in phase.terms if term in stretch.terms] == list(stretch.terms)
    for term, column in zip(phase.terms, terms.T, strict=True):
        assert bool((column != 0).all()) == (term in stretch.terms and term != "lpips"), term


@pytest.mark.parametrize(("name", "number"), STRETCHES)
def test_a_stretch_depends_on_the_noise_that_it_names_and_on_no_other(
    name: PhaseName, number: int, codec_dir: Path, sample: Sample
) -> None:
    module = PHASES[name].module(config_of(codec_dir), CPU, None)
    stretch = PHASES[name].stretches(config_of(codec_dir))[number]

    def losses_and_gradients(without: set[Noise]) -> list[torch.Tensor]:
        module.zero_grad()
        zeros = {noise: torch.zeros(()).expand_as(getattr(sample, noise)) for noise in without}
        terms = module(sample._replace(**zeros), stretch.name, 0.5)
        terms[:, 0].sum().backward()
        return [terms, *(p.grad.clone() for _, p in trained_parameters(module) if p.grad is not None)]

    expected = losses_and_gradients(set())
    without = losses_and_gradients(set(NOISE) - set(stretch.noise))
    assert len(without) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(without, expected, strict=True))
    for noise in stretch.noise:
        assert not torch.equal(losses_and_gradients({noise})[0], expected[0]), noise


def test_what_stands_still_adds_nothing_to_the_loss_of_phase_1(codec_dir: Path, sample: Sample) -> None:
    """Alone and together the parts come to the same: the loss at the end is that of the two stretches before."""
    module = PHASES["phase1"].module(config_of(codec_dir), CPU, None)
    transforms, score, together = (module(sample, stretch, 1.0) for stretch in ("transforms", "score", "together"))
    torch.testing.assert_close(together[:, 0], transforms[:, 0] + score[:, 0])
    torch.testing.assert_close(together[:, 1:], torch.maximum(transforms, score)[:, 1:])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_phase_3_starts_with_the_pictures_that_the_codec_decodes_uncorrected(
    steps: Literal[1, 2, 4], codec_dir: Path, sample: Sample
) -> None:
    module = PHASES["phase3"].module(dataclasses.replace(config_of(codec_dir), steps=steps), CPU, None)
    assert isinstance(module, Phase3Module)
    codec = load_codec(str(codec_dir), precision="fp32")
    y_hat_BMhw, g_BM11 = codec.latents_of(sample.x_BCHW, sample.q_B)
    d_BCHW = codec.networks.privileged(y_hat_BMhw, g_BM11)
    (tile,) = Layout(64, 64, 0, 0)
    times = sampling_times(steps, codec.config.diffusion.start)
    decoded = trajectory.run(codec.networks, y_hat_BMhw, d_BCHW, tile, times, NoFactors())
    eps_BCHW = format_noise(64, 64).expand_as(d_BCHW)
    torch.testing.assert_close(module._decode(y_hat_BMhw, d_BCHW, eps_BCHW).clamp(-1, 1), decoded, atol=1e-5, rtol=0)


def test_one_backward_pass_gives_the_score_network_and_the_discriminator_their_own_gradients(
    codec_dir: Path, sample: Sample
) -> None:
    """Against two passes, as they are trained apart: each loss with the other's weights held."""
    module = PHASES["phase3"].module(config_of(codec_dir), CPU, None)
    assert isinstance(module, Phase3Module)
    judge = module.discriminator
    torch.nn.init.normal_(judge.verdict.weight, generator=torch.Generator().manual_seed(0))
    x_BCHW = sample.x_BCHW
    made_BCHW = (x_BCHW * 0.8).requires_grad_()
    channels = read_config(str(codec_dir))[0].transform.latent_channels
    y_BMhw = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    weights = list(judge.parameters())

    def fine(picture_BCHW: torch.Tensor) -> torch.Tensor:
        return picture_BCHW - coarse_part(picture_BCHW)

    fooled = F.softplus(-judge(fine(made_BCHW), y_BMhw)).flatten(1).mean(1)
    (of_picture,) = torch.autograd.grad(fooled.sum(), made_BCHW)
    real, made = judge(fine(x_BCHW), y_BMhw), judge(fine(made_BCHW.detach()), y_BMhw)
    told_apart = -(F.logsigmoid(real) + F.logsigmoid(-made)).flatten(1).mean(1)
    of_weights = torch.autograd.grad(told_apart.sum(), weights)
    adversarial_B, discriminator_B, both_B = module._judge(x_BCHW, made_BCHW, y_BMhw)
    torch.testing.assert_close(adversarial_B, fooled)
    torch.testing.assert_close(discriminator_B, told_apart)
    found = torch.autograd.grad(both_B.sum(), [made_BCHW, *weights])
    for gradient, expected in zip(found, [of_picture, *of_weights], strict=True):
        assert expected.any()
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@every_phase
def test_the_codec_of_unchanged_averages_is_the_start_codec(name: PhaseName, codec_dir: Path) -> None:
    config = config_of(codec_dir)
    module = PHASES[name].module(config, CPU, None)
    averaged = {n: p.detach().clone() for n, p in trained_parameters(module)}
    model, tables = PHASES[name].codec(config, averaged)
    before = read_config(str(codec_dir))[0].diffusion.steps
    assert model.config.diffusion.steps == (config.steps if name == "phase3" else before)
    start, start_tables, _ = load_networks(str(codec_dir))
    for n, weight in codec_weights(start).items():
        assert torch.equal(model.get_parameter(n), weight), n
    for n, table in start_tables.tensors.items():
        assert torch.equal(tables.tensors[n], table), n


@every_phase
def test_a_phase_that_goes_on_from_a_codec_says_so_where_none_is_given(name: PhaseName) -> None:
    phase, config = PHASES[name], TrainConfig(shards="shards")
    if phase.follows is None:
        assert phase.module(config, CPU, None) is not None
        return
    with pytest.raises(UsageError, match=r"phase \d needs the codec of a finished phase \d: give --init-from CODEC"):
        phase.module(config, CPU, None)
