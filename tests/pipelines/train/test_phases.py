"""What every phase gives to the loop, the export and the command line fits together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from corrdiff.codec_directory import codec_weights, load_networks
from corrdiff.config import tiny
from corrdiff.errors import UsageError
from pipelines.train import samples
from pipelines.train.batch import Batch
from pipelines.train.checkpoints import trained_parameters
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.epoch_order import Cursor
from pipelines.train.phases.table import PHASES
from pipelines.train.samples import Sample

CPU = torch.device("cpu")

every_phase = pytest.mark.parametrize("name", PHASES)


def config_of(codec_dir: Path) -> TrainConfig:
    return TrainConfig(shards="shards", init_from=str(codec_dir))


@pytest.fixture(scope="module")
def sample() -> Sample:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    batch = Batch(0, ["a", "b"], pixels, np.ones(2, np.float32), 2, Cursor(0, 0), 0)
    return samples.draw(batch, 0, 64, tiny().transform, CPU)


@every_phase
def test_a_phase_stands_under_its_name_after_the_one_that_it_follows(name: PhaseName) -> None:
    phase, order = PHASES[name], list(PHASES)
    assert phase.name == name
    assert phase.follows is None or order.index(phase.follows) < order.index(name)


@every_phase
@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_a_module_gives_a_column_a_term_and_every_trained_weight_a_gradient(
    name: PhaseName, warmup: float, codec_dir: Path, sample: Sample
) -> None:
    phase = PHASES[name]
    module = phase.module(config_of(codec_dir), CPU, None)
    terms = module(sample, warmup)
    assert terms.shape == (2, len(phase.terms))
    terms[:, 0].sum().backward()
    assert all(p.grad is not None for _, p in trained_parameters(module))
    computed = phase.terms_at(warmup)
    assert computed[0] == phase.terms[0] == "loss"
    assert [term for term in phase.terms if term in computed] == list(computed)
    for term, column in zip(phase.terms, terms.T, strict=True):
        assert bool((column != 0).all()) == (term in computed and term != "lpips"), term


@every_phase
def test_the_codec_of_unchanged_averages_is_the_start_codec(name: PhaseName, codec_dir: Path) -> None:
    config = config_of(codec_dir)
    module = PHASES[name].module(config, CPU, None)
    averaged = {n: p.detach().clone() for n, p in trained_parameters(module)}
    model, tables = PHASES[name].codec(config, averaged)
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
