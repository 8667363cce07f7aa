"""What a sample is made of never changes: the same crop, times and noise for a seed, an epoch and a key, whatever is
left out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain, combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from corrdiff import diffusion
from corrdiff.config import tiny
from pipelines.train import samples
from pipelines.train.batch import Batch
from pipelines.train.epoch_order import Cursor
from pipelines.train.samples import NOISE, Noise, Sample
from tests.support.drawn import draw

CPU, SEED, CROP, TRANSFORM = torch.device("cpu"), 3, 64, tiny().transform
EVERY_CHOICE = list(chain.from_iterable(combinations(NOISE, n) for n in range(len(NOISE) + 1)))


@pytest.fixture(scope="module")
def batch() -> Batch:
    pixels = np.stack([draw(96, 96, seed=i) for i in range(4)])
    return Batch(2, ["a", "b", "c", ""], pixels, np.array([1, 1, 1, 0], np.float32), 3, Cursor(2, 1), 0)


def one_after_the_other(batch: Batch, i: int) -> tuple[Tensor, ...]:
    """Draw a crop in the order that runs of before were drawn in, each tensor for itself."""
    generator = samples.generator_of(SEED, batch.epoch, batch.keys[i])
    top, left, flip = (int(torch.randint(high, (), generator=generator)) for high in (33, 33, 2))
    window = batch.pixels_BHWC[i][top : top + CROP, left : left + CROP]
    x_CHW = torch.from_numpy((window[:, ::-1] if flip else window).copy()).permute(2, 0, 1).float() / 127.5 - 1
    q = torch.randint(8, (), generator=generator)
    t = diffusion.training_time(torch.rand((), generator=generator))
    eps = torch.randn((3, CROP, CROP), generator=generator)
    u_y = torch.rand((TRANSFORM.latent_channels, 4, 4), generator=generator) - 0.5
    u_z = torch.rand((TRANSFORM.hyper_channels, 1, 1), generator=generator) - 0.5
    return x_CHW, torch.tensor(batch.weight_B[i]), q, t, eps, u_y, u_z


@pytest.mark.parametrize("noise", EVERY_CHOICE, ids=lambda noise: "+".join(noise) or "none")
def test_a_sample_is_that_of_its_key_to_the_bit_whatever_noise_is_left_out(
    batch: Batch, noise: tuple[Noise, ...]
) -> None:
    sample = samples.draw(batch, SEED, CROP, TRANSFORM, CPU, noise)
    columns = zip(*(one_after_the_other(batch, i) for i in range(4)), strict=True)
    for name, found, rows in zip(Sample._fields, sample, columns, strict=True):
        expected = torch.stack(rows)
        if name in NOISE and name not in noise:
            expected = torch.zeros_like(expected)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype), name
        assert torch.equal(found, expected), name
    assert sample.x_BCHW.is_contiguous(memory_format=torch.channels_last)


def test_what_is_left_out_takes_no_bytes(batch: Batch) -> None:
    whole, bare = (samples.pack(batch, SEED, CROP, TRANSFORM, noise) for noise in (NOISE, ()))
    noise_bytes = sum(view.nbytes for name, view in whole.views().items() if name in NOISE)
    assert noise_bytes == whole.data.nbytes - bare.data.nbytes > 4 * bare.views()["x_BHWC"].nbytes


def test_threads_draw_the_same_crops_side_by_side(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpinned(*size: int, pin_memory: bool = False, **options: torch.dtype) -> Tensor:
        return empty(*size, **options)

    alone, empty = samples.pack(batch, SEED, CROP, TRANSFORM), torch.empty
    monkeypatch.setattr(torch, "empty", unpinned)  # memory is pinned by the driver of a GPU
    with ThreadPoolExecutor(3) as threads:
        together = samples.pack(batch, SEED, CROP, TRANSFORM, threads=threads)
    for name, view in alone.views().items():
        assert torch.equal(view, together.views()[name]), name
