from __future__ import annotations

import numpy as np
import pytest
import torch

from corrdiff.config import tiny
from corrdiff.networks.layers import recompute_blocks
from corrdiff.networks.model import CorrDiffModel
from pipelines.train import samples
from pipelines.train.batch import Batch
from pipelines.train.costs import PEAK_FLOPS, Costs, peak_flops
from pipelines.train.crop_costs import activation_bytes_per_crop, flops_per_crop
from pipelines.train.epoch_order import Cursor
from pipelines.train.phases.phase1 import Phase1Module

ONE = Costs(
    crops=100, seconds=10.0, waited_s=0.5, read_bytes=2_000_000, peak_memory_bytes=1 << 30, flops=3e11,
    peak_flops=None, worker_s=20.0, workers=2,
)  # fmt: skip


def test_costs_are_rates_over_all_workers_and_shares_of_the_time() -> None:
    values = ONE.metrics()
    assert values["crops_per_s"] == 10
    assert values["crops_per_s_per_worker"] == 5
    assert values["waiting_share"] == pytest.approx(0.05)
    assert values["read_mb_per_s"] == pytest.approx(0.2)
    assert values["peak_memory_gib"] == 1
    assert values["tflops_per_s"] == pytest.approx(0.03)
    assert "hfu" not in values
    assert ONE._replace(peak_flops=2e13).metrics()["hfu"] == pytest.approx(0.015)


def test_stretches_of_time_add_up_and_memory_is_the_highest() -> None:
    later = ONE._replace(seconds=30.0, peak_memory_bytes=5, worker_s=30.0, workers=1, peak_flops=1e13)
    joined = ONE.joined(later)
    assert (joined.crops, joined.seconds, joined.read_bytes, joined.flops) == (200, 40.0, 4_000_000, 6e11)
    assert joined.peak_memory_bytes == 1 << 30
    assert joined.metrics()["crops_per_s_per_worker"] == 4
    assert joined.peak_flops is None
    assert later.joined(later).peak_flops == 2e13


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA L40S", "L40S"), ("NVIDIA L40", "L40"), ("NVIDIA L4", "L4"), ("Tesla T4", "T4"),
        ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIE"), ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA A10G", "A10G"), ("Tesla V100-PCIE-16GB", "V100 PCIE"),
        ("NVIDIA B200", "B200"), ("NVIDIA RTX A1000 Laptop GPU", None), ("Something Else", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_gpu_is_that_of_its_kind(name: str, known: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == (PEAK_FLOPS[known] if known else None)


def test_a_cpu_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu")) is None


def test_the_operations_of_a_crop_are_counted_and_leave_no_gradient() -> None:
    config = tiny()
    module = Phase1Module(CorrDiffModel(config), 0.0066)
    flops = flops_per_crop(module, config.transform, 64, "together", torch.device("cpu"))
    assert all(p.grad is None for p in module.parameters())
    recompute_blocks(module)
    assert flops_per_crop(module, config.transform, 64, "together", torch.device("cpu")) > 1.1 * flops
    assert flops_per_crop(module, config.transform, 128, "together", torch.device("cpu")) > 4 * flops
    # Each weight of a convolution works at many positions, in two passes more backwards than forwards.
    assert flops > 6 * sum(p.numel() for p in module.model.decoder.parameters())


def test_the_memory_of_a_crops_activations_is_counted_and_less_where_they_are_recomputed() -> None:
    config = tiny()
    module = Phase1Module(CorrDiffModel(config), 0.0066)

    def counted(stretch: str, crop: int = 64) -> float:
        return activation_bytes_per_crop(module, config.transform, crop, stretch, torch.device("cpu"))

    whole = counted("together")
    assert counted("together", 128) == 4 * whole
    assert 0 < counted("transforms") < whole
    with torch.autocast("cpu", torch.bfloat16):
        assert 0.4 * whole < counted("together") < 0.8 * whole
    finest = config.denoiser.channels[0] * (64 // config.denoiser.patch) ** 2 * 4
    assert whole > 10 * finest, "each of the score network's layers at the finest resolution keeps its input"
    recompute_blocks(module)
    assert counted("together") < 0.7 * whole


def test_recomputed_activations_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    config = tiny()
    module = Phase1Module(CorrDiffModel(config), 0.0066)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    batch = Batch(0, ["a", "b"], pixels, np.ones(2, np.float32), 2, Cursor(0, 0), 0)
    sample = samples.draw(batch, 0, 64, config.transform, torch.device("cpu"))

    def gradients() -> list[torch.Tensor]:
        module.zero_grad()
        module(sample, "together", 1.0)[:, 0].sum().backward()
        return [p.grad.clone() for p in module.parameters() if p.grad is not None]

    kept = gradients()
    recompute_blocks(module)
    again = gradients()
    assert len(kept) == len(again) > 50
    for a, b in zip(kept, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)
