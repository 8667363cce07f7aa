"""DeepSpeed in every ZeRO stage against a plain PyTorch loop on the same batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from corrdiff.codec_directory import save_codec
from corrdiff.config import tiny
from corrdiff.networks.model import CorrDiffModel
from pipelines.cli import main
from pipelines.shards.format import Manifest, read_manifest
from pipelines.train import epoch_order, ingest
from pipelines.train.batch import Batch
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.crops import Crops
from pipelines.train.epoch_order import Cursor
from pipelines.train.phases.table import PHASES
from pipelines.train.samples import draw
from tests.support.commands import train_args
from tests.support.results import recorded
from tests.support.training import Plain, plain_loop

STEPS = 20
BATCH = 8


@pytest.fixture(scope="module")
def start_codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(1)
    model = CorrDiffModel(tiny())
    out = str(tmp_path_factory.mktemp("start") / "codec")
    save_codec(model, model.entropy.freeze(), out)
    return out


@pytest.fixture(scope="module")
def plain(shards: str, start_codec: str) -> dict[str, Plain]:
    manifest = read_manifest(shards)
    config = plain_config(shards, start_codec)
    return {name: plain_loop(config, phase, batches(shards, manifest)) for name, phase in PHASES.items()}


def plain_config(shards: str, start_codec: str) -> TrainConfig:
    return TrainConfig(
        shards=shards, crops_total=crops_total(read_manifest(shards)), batch=BATCH, crop=64, init_from=start_codec
    )


# `make test` has the same comparison with DeepSpeed's engine in one process (tests/pipelines/train/test_trainer.py).
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("phase", PHASES)
def test_losses_of_two_workers_equal_a_plain_pytorch_loop(
    phase: PhaseName, stage: int, shards: str, start_codec: str, plain: dict[str, Plain], tmp_path: Path, tracking: str
) -> None:
    options = train_args(
        shards, str(tmp_path), crops_total=crops_total(read_manifest(shards)), batch=BATCH, workers=2,
        zero_stage=stage, log_every=1, init_from=start_codec, checkpoint_every=1_000_000, micro_batch=2,
    )  # fmt: skip
    assert main(["train", phase, *options]) == 0
    losses = list(recorded(tracking).values())
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, plain[phase].losses, rtol=1e-4)
    np.testing.assert_allclose(list(recorded(tracking, "grad_norm").values()), plain[phase].grad_norms, rtol=1e-2)


def batches(shards: str, manifest: Manifest) -> list[Batch]:
    """The plan of `STEPS` steps, read without Ray Data."""
    result = []
    for part in epoch_order.parts(manifest, 0, Cursor(0, 0), STEPS, BATCH):
        share = ingest.CropReader(Crops(shards, manifest), 0, BATCH).share_of(part)
        (table,) = share()  # these shards are one small window
        pixels = table.column("pixels").combine_chunks().to_numpy_ndarray()
        numbers, members = (table.column(name).to_numpy() for name in ("shard", "member"))
        for i in range(0, len(numbers), BATCH):
            rows = slice(i, i + BATCH)
            keys = [
                manifest.shards[n].key(m) if n >= 0 else "" for n, m in zip(numbers[rows], members[rows], strict=True)
            ]
            weight = (numbers[rows] >= 0).astype(np.float32)
            result.append(Batch(part.epoch, keys, pixels[rows], weight, int(weight.sum()), Cursor(0, 0), 0))
    return result


def crops_total(manifest: Manifest) -> int:
    """Crops in `STEPS` steps, which end some epochs with a smaller step."""
    epoch_steps = epoch_order.steps_per_epoch(manifest, BATCH)
    epochs, rest = divmod(STEPS, epoch_steps)
    return epochs * manifest.count + rest * BATCH


@pytest.mark.parametrize("name", ["phase1", "phase2"])
def test_the_plain_loop_learns(name: PhaseName, shards: str, start_codec: str, plain: dict[str, Plain]) -> None:
    """A comparison of two loops that do nothing would pass: these do something."""
    manifest = read_manifest(shards)
    config, phase = plain_config(shards, start_codec), PHASES[name]
    device, transform = torch.device("cpu"), tiny().transform
    every = [draw(batch, config.seed, config.crop, transform, device) for batch in batches(shards, manifest)[:4]]
    for stretch in phase.stretches(config):
        before, after = (
            np.mean([float(module(sample, stretch.name, 1.0)[:, 0].mean().detach()) for sample in every])
            for module in (phase.module(config, device, None), plain[name].module)
        )
        assert after < 0.95 * before, stretch.name
    assert min(plain[name].grad_norms) > 0


@pytest.mark.slow
def test_bf16_follows_fp32_and_keeps_weights_in_fp32(
    shards: str, start_codec: str, plain: dict[str, Plain], tmp_path: Path, tracking: str
) -> None:
    options = train_args(
        shards, str(tmp_path), crops_total=crops_total(read_manifest(shards)), batch=BATCH, workers=2,
        zero_stage=3, log_every=1, init_from=start_codec, checkpoint_every=1_000_000, precision="bf16",
    )  # fmt: skip
    assert main(["train", "phase1", *options]) == 0
    losses = list(recorded(tracking).values())
    np.testing.assert_allclose(losses, plain["phase1"].losses, rtol=0.1)
    assert losses != plain["phase1"].losses
    checkpoint = next((tmp_path / "run" / "phase1" / "checkpoints").iterdir())
    tensors = safetensors.torch.load_file(checkpoint / "part-0-of-2.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert any(not torch.equal(t, t.bfloat16().float()) for name, t in tensors.items() if name.startswith("weight/"))
