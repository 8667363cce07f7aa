from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff.networks import layers

CHANNELS_LAST = torch.channels_last


@pytest.mark.parametrize(("factor", "shape"), [(2, (2, 12, 3, 5)), (4, (1, 48, 2, 3)), (2, (3, 4, 1, 1))])
def test_shuffles_that_keep_the_layout_move_what_torchs_own_move(
    factor: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape).contiguous(memory_format=CHANNELS_LAST)
    large = F.pixel_shuffle(x, factor).contiguous(memory_format=CHANNELS_LAST)
    monkeypatch.setattr(layers, "_loses_layout", lambda x_BCHW: True)  # as on a GPU
    assert torch.equal(layers.pixel_shuffle(x, factor), large)
    assert torch.equal(layers.pixel_unshuffle(large, factor), x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shuffle", [layers.pixel_shuffle, layers.pixel_unshuffle])
@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
def test_shuffles_keep_the_layout_on_every_device(
    device: str, shuffle: Callable[[Tensor, int], Tensor], layout: torch.memory_format
) -> None:
    x = torch.empty(2, 16, 8, 8, device=device).contiguous(memory_format=layout).requires_grad_()
    out = shuffle(x, 2)
    (gradient,) = torch.autograd.grad(out, x, torch.empty_like(out))
    assert out.is_contiguous(memory_format=layout)
    assert gradient.is_contiguous(memory_format=layout)
