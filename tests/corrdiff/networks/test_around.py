"""Networks are built around weights that are there: none is drawn, and the result is what drawing and copying gave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from corrdiff.codec_directory import load_networks, read_config
from corrdiff.config import CodecConfig, preset
from corrdiff.networks.model import CorrDiffModel
from tests.support.codecs import first_codec


@pytest.mark.parametrize("for_training", [True, False])
@pytest.mark.parametrize("config", [preset("tiny"), first_codec()], ids=["today's", "first"])
def test_networks_around_weights_are_those_that_are_drawn_and_loaded_over(
    config: CodecConfig, for_training: bool
) -> None:
    torch.manual_seed(1)
    drawn = CorrDiffModel(config, for_training)
    built = CorrDiffModel.around(config, {n: p.detach().clone() for n, p in drawn.named_parameters()}, for_training)
    assert [n for n, _ in built.named_parameters()] == [n for n, _ in drawn.named_parameters()]
    for (name, p), other in zip(built.named_parameters(), drawn.parameters(), strict=True):
        assert torch.equal(p, other) and p.requires_grad == other.requires_grad, name
    for (name, buffer), other in zip(built.named_buffers(), drawn.buffers(), strict=True):
        assert not buffer.is_meta and torch.equal(buffer, other), name
    assert built.config is config


@pytest.mark.parametrize("for_training", [True, False])
def test_only_a_small_part_of_a_base_codec_is_drawn(for_training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config, drawn = preset("base"), [0]
    with torch.device("meta"):
        shapes = CorrDiffModel(config, for_training)
    weights = {name: torch.zeros(()).expand(p.shape) for name, p in shapes.named_parameters()}
    uniform: Callable[..., Tensor] = Tensor.uniform_

    def counted(self: Tensor, *args: float, **kwargs: torch.Generator) -> Tensor:
        drawn[0] += 0 if self.is_meta else self.numel()
        return uniform(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "uniform_", counted)
    CorrDiffModel.around(config, weights, for_training)
    entropy = sum(p.numel() for p in shapes.entropy.parameters())
    assert drawn[0] <= (entropy if for_training else 0) < 0.2 * sum(p.numel() for p in shapes.parameters())


def test_what_a_codec_directory_holds_becomes_the_networks_own(sliced_dir: Path) -> None:
    for for_training in (True, False):
        model, _, _ = load_networks(str(sliced_dir), for_training)
        assert all(not t.is_meta for t in (*model.parameters(), *model.buffers()))
        assert model.config == read_config(str(sliced_dir))[0]


def test_weights_that_do_not_fit_are_no_networks() -> None:
    config = preset("tiny")
    weights = {n: p.detach() for n, p in CorrDiffModel(config, for_training=False).named_parameters()}
    for wrong in (
        {**weights, "other.weight": torch.zeros(1)},
        {n: w for n, w in weights.items() if "decoder" not in n},
    ):
        with pytest.raises(AssertionError):
            CorrDiffModel.around(config, wrong, for_training=False)
