"""The trainer on its own, without Ray: what moves when, in every ZeRO stage as a plain loop has it, and what a resume
goes on with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from corrdiff.codec_directory import codec_weights, load_networks, save_codec
from corrdiff.config import CodecConfig, DenoiserConfig, TransformConfig
from corrdiff.networks.model import CorrDiffModel
from pipelines.train import checkpoints
from pipelines.train import trainer as trainer_module
from pipelines.train.batch import Batch
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.phases.table import PHASES
from pipelines.train.trainer import StepResult, Trainer
from tests.support.training import drawn_batches, plain_loop

BATCH, CROP, STEPS = 2, 64, 6
"""Two steps for each stretch of phase 1."""

pytestmark = pytest.mark.usefixtures("process_group")

STAGES = [pytest.param(stage, marks=[] if stage in (0, 2) else pytest.mark.slow) for stage in (0, 1, 2, 3)]


@pytest.fixture(scope="module")
def start_codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained codec of narrow networks, whose hyperlatents are not all zero."""
    torch.manual_seed(1)
    config = CodecConfig(
        "tiny", TransformConfig(channels=(8, 8, 8), blocks=1, latent_channels=8, hyper_channels=8),
        DenoiserConfig(channels=(8, 8, 8), context_channels=(8, 8, 8), time_channels=8),
    )  # fmt: skip
    model = CorrDiffModel(config)
    with torch.no_grad():
        model.entropy.hyper_analysis.layers[-1].weight.mul_(50.0)
    out = str(tmp_path_factory.mktemp("start") / "codec")
    save_codec(model, model.entropy.freeze(), out)
    return out


def config_of(start_codec: str, stage: int = 0) -> TrainConfig:
    return TrainConfig(
        shards="shards", init_from=start_codec, crops_total=STEPS * BATCH, batch=BATCH, micro_batch=1, crop=CROP,
        transforms_share=1 / 3, score_share=1 / 3, zero_stage=stage,  # type: ignore[arg-type]
    )  # fmt: skip


def trainer_of(config: TrainConfig, phase: PhaseName, restored: checkpoints.Restored | None = None) -> Trainer:
    return Trainer(config, PHASES[phase], torch.device("cpu"), restored)


def step(trainer: Trainer, batch: Batch) -> StepResult:
    return trainer.step(trainer.draw(batch, trainer.progress.crops_seen))


def states_of(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """All that a checkpoint holds of each parameter."""
    return {
        name: {kind: tensor.detach().clone() for kind, tensor in state.items()}
        | {"ema": trainer.ema.average[name].clone()}
        for name, state in checkpoints._full_states(trainer.engine)
    }


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("phase", PHASES)
def test_losses_and_gradients_are_those_of_a_plain_loop(phase: PhaseName, stage: int, start_codec: str) -> None:
    config = config_of(start_codec, stage)
    batches = drawn_batches(STEPS, BATCH, CROP)
    plain = plain_loop(config, PHASES[phase], batches)
    trainer = trainer_of(config, phase)
    results = [step(trainer, batch) for batch in batches]
    np.testing.assert_allclose([result.terms[0] for result in results], plain.losses, rtol=1e-4)
    np.testing.assert_allclose([result.grad_norm for result in results], plain.grad_norms, rtol=1e-2)
    assert min(plain.grad_norms) > 0


@pytest.mark.parametrize("stage", STAGES)
def test_what_stands_still_in_a_stretch_does_not_change_to_the_bit_and_all_else_does(
    stage: int, start_codec: str
) -> None:
    config = config_of(start_codec, stage)
    trainer = trainer_of(config, "phase1")
    batches = iter(drawn_batches(STEPS, BATCH, CROP))
    for stretch in PHASES["phase1"].stretches(config):
        step(trainer, next(batches))
        first = states_of(trainer)
        step(trainer, next(batches))
        for name, state in states_of(trainer).items():
            moves = PHASES["phase1"].group(name) in stretch.peaks
            for kind in ("weight", "ema"):
                assert torch.equal(state[kind], first[name][kind]) != moves, (stretch.name, kind, name)
            if not moves:
                assert bool((state["exp_avg"].abs() <= first[name]["exp_avg"].abs()).all()), (stretch.name, name)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_goes_on_inside_a_stretch_ends_as_one_that_was_not_interrupted(
    stage: int, start_codec: str, tmp_path: Path
) -> None:
    config = config_of(start_codec, stage)
    batches = drawn_batches(STEPS, BATCH, CROP)
    whole = trainer_of(config, "phase1")
    for batch in batches:
        step(whole, batch)
        checkpoints.save(str(tmp_path), whole.engine, whole.ema, whole.progress, keep=STEPS)
    for done, uri in enumerate(reversed(checkpoints.finished(str(tmp_path))), start=1):
        if done % 2 == 0:
            continue
        resumed = trainer_of(config, "phase1", checkpoints.load(uri))
        for batch in batches[done:]:
            step(resumed, batch)
        found, expected = states_of(resumed), states_of(whole)
        for name, state in expected.items():
            for kind, tensor in state.items():
                assert torch.equal(found[name][kind], tensor), (done, kind, name)


@pytest.mark.parametrize("phase", PHASES)
def test_activations_are_recomputed_where_memory_is_short_and_nothing_else_changes(
    phase: PhaseName, start_codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = drawn_batches(2, BATCH, CROP)
    config = config_of(start_codec)
    kept = trainer_of(config, phase)
    flops = kept.flops_per_crop
    expected = [step(kept, batch).terms for batch in batches]
    monkeypatch.setattr(trainer_module, "_memory_bytes", lambda device: 1 << 16)
    told = trainer_of(dataclasses.replace(config, activation_checkpointing=False), phase)
    short = trainer_of(config, phase)
    assert (kept.recomputes, told.recomputes, short.recomputes) == (False, False, True)
    assert short.flops_per_crop > flops
    np.testing.assert_allclose([step(short, batch).terms for batch in batches], expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_bf16_and_recomputed_activations_follow_fp32_where_weights_are_partitioned(
    phase: PhaseName, start_codec: str
) -> None:
    batches = drawn_batches(STEPS, BATCH, CROP)
    config = dataclasses.replace(config_of(start_codec, stage=3), micro_batch=None)
    plain = plain_loop(config, PHASES[phase], batches)
    trainer = trainer_of(dataclasses.replace(config, precision="bf16", activation_checkpointing=True), phase)
    np.testing.assert_allclose([step(trainer, batch).terms[0] for batch in batches], plain.losses, rtol=0.1)


@pytest.mark.parametrize("phase", ["phase2", "phase3"])
def test_a_phase_that_goes_on_from_a_codec_leaves_all_else_of_it_as_it_is(phase: PhaseName, start_codec: str) -> None:
    trainer = trainer_of(config_of(start_codec), phase)
    for batch in drawn_batches(2, BATCH, CROP):
        step(trainer, batch)
    model, tables = trainer.averaged_codec()
    start, start_tables, _ = load_networks(start_codec)
    weights = codec_weights(start)
    changed = {name.split(".")[0] for name, w in codec_weights(model).items() if not torch.equal(w, weights[name])}
    assert changed == {"phase2": {"decoder"}, "phase3": {"context", "denoiser"}}[phase]
    assert all(torch.equal(tables.tensors[name], table) for name, table in start_tables.tensors.items())
