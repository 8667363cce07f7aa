"""Context in whole numbers: what is written is read, on any threads, in any batch, and nothing looks ahead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from corrdiff.errors import UsageError
from corrdiff.format import latent_models
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.format.latent_models import SlicedContext, checkerboard
from corrdiff.networks.entropy_model import EntropyModel
from tests.support.coding import encode

SLICES = (2, 3, 7)
HYPER, FEATURES, HIDDEN = 8, 6, 10


def _layer(name: str, outputs: int, inputs: int, side: int, generator: torch.Generator) -> dict[str, Tensor]:
    weight = torch.randint(-3000, 3001, (outputs, inputs, side, side), generator=generator, dtype=torch.int32)
    bias = torch.randint(-(1 << 20), 1 << 20, (outputs,), generator=generator)
    return {
        f"{name}.weight": weight,
        f"{name}.bias": bias,
        f"{name}.fraction_bits": torch.tensor(20, dtype=torch.int32),
    }


def _tensors(small: EntropyModel) -> dict[str, Tensor]:
    """The tables of the small model, with a context of random weights in the place of its last layer."""
    generator = torch.Generator().manual_seed(3)
    tensors = {name: t for name, t in small.freeze().tensors.items() if not name.startswith("h_s.2")}
    tensors |= _layer("h_s.2", FEATURES, HYPER, 3, generator)
    seen = FEATURES
    for k, size in enumerate(SLICES):
        for half, inputs in enumerate((seen, seen + 2 * size)):
            tensors |= _layer(f"context.{k}.{half}.hidden", HIDDEN, inputs, 3, generator)
            tensors |= _layer(f"context.{k}.{half}.out", 2 * size, HIDDEN, 1, generator)
        seen += 2 * size
    bias = torch.randint(0, 40 * 64, (8, sum(SLICES)), generator=generator, dtype=torch.int32)
    return tensors | {"y.slices": torch.tensor(SLICES, dtype=torch.int32), "y.scale_bias": bias}


@pytest.fixture(scope="module")
def tables(small: EntropyModel) -> EntropyTables:
    return EntropyTables(_tensors(small))


def _latents(batch: int, rows: int = 8, columns: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    y = 6 * torch.randn(batch, sum(SLICES), rows, columns, generator=generator)
    return y, 3 * torch.randn(batch, HYPER, rows // 4, columns // 4, generator=generator)


@pytest.mark.parametrize("quality", [0, 5, 64, 111, 112])
def test_decoding_gives_what_encoding_saw(tables: EntropyTables, quality: int) -> None:
    y, z = _latents(3)
    coded = encode(tables, y, z, quality)
    assert torch.equal(tables.decode(coded.streams, (2, 3), torch.full((3,), quality)), coded.y_hat_BMhw)
    assert float((coded.y_hat_BMhw - y).abs().max()) <= 0.5


@pytest.mark.parametrize("count", [1, 2])
def test_streams_do_not_depend_on_the_batch_on_threads_or_on_strips(
    tables: EntropyTables, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    y, z = _latents(3)
    together = encode(tables, y, z)
    threads(count)
    monkeypatch.setattr(latent_models, "STRIP_POSITIONS", 12 * 3)
    for i in range(3):
        assert encode(tables, y[i : i + 1], z[i : i + 1]).streams == [together.streams[i]]


def test_a_run_depends_on_nothing_that_comes_after_it(tables: EntropyTables) -> None:
    assert isinstance(tables.model, SlicedContext)
    y, z = _latents(1)
    z_hat, quality_B = z.round(), torch.tensor([64])

    def seen(latent: Tensor) -> list[Tensor]:
        found: list[Tensor] = []

        def note(run: latent_models.Run, m: Tensor, index: Tensor) -> Tensor:
            found.append(torch.cat([m, index.float()], 1))
            return (run.of(latent) - m).round()

        tables.model.walk(z_hat, quality_B, note)
        return found

    before = seen(y)
    first = 0
    for k, size in enumerate(SLICES):
        for parity in range(2):
            other = y.clone().flatten(2)
            other[:, first + size :] += 5
            other[:, first : first + size, checkerboard(8, 12, parity)] += 5
            if parity == 0:
                other[:, first : first + size] += 5
            changed, run = seen(other.reshape(y.shape)), 2 * k + parity
            assert all(torch.equal(a, b) for a, b in zip(before[: run + 1], changed[: run + 1], strict=True))
            assert any(not torch.equal(a, b) for a, b in zip(before[run + 1 :], changed[run + 1 :], strict=True)) or (
                run == 2 * len(SLICES) - 1
            )
        first += size


def test_every_position_of_every_channel_is_in_one_run(tables: EntropyTables) -> None:
    both = torch.cat([checkerboard(5, 7, 0), checkerboard(5, 7, 1)])
    assert both.sort()[0].tolist() == list(range(35))
    assert checkerboard(2, 3, 0).tolist() == [0, 2, 4]
    (symbols,) = tables.quantise(*_latents(1), torch.tensor([64]))[0]
    assert symbols.y_n.size == sum(SLICES) * 8 * 12


def test_the_scale_between_two_qualities_lies_between_theirs(tables: EntropyTables) -> None:
    assert isinstance(tables.model, SlicedContext)
    low, middle, high = tables.model._bias(torch.tensor([16, 28, 32]))
    assert torch.equal(middle, low + (high - low) * 0.75)
    assert torch.equal(tables.model._bias(torch.tensor([112]))[0], tables.model.scale_bias_QM[7])


def test_tables_that_do_not_fit_each_other_are_refused(small: EntropyModel) -> None:
    for broken in ("context.1.1.hidden.weight", "context.2.0.out.weight", "y.scale_bias", "h_s.2.bias"):
        tensors = _tensors(small)
        tensors[broken] = tensors[broken][:-1]
        with pytest.raises(UsageError, match="codec tables"):
            EntropyTables(tensors)
        del tensors[broken]
        with pytest.raises(UsageError, match="codec tables"):
            EntropyTables(tensors)
