from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from corrdiff.codec import CorrDiffCodec
from corrdiff.errors import UsageError
from corrdiff.format import entropy_tables
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.format.integer_layers import IntegerConv
from corrdiff.format.latent_models import SCALE_LEVELS
from corrdiff.format.range_coder import SYMBOL_MAX, SYMBOL_MIN
from corrdiff.networks.entropy_model import EntropyModel
from tests.support.coding import encode

MIDDLE = torch.tensor([64])
"""The middle quality, as tables count it."""


@pytest.fixture(scope="module")
def tables(codec: CorrDiffCodec) -> EntropyTables:
    return codec.tables


def _symbols(channels: int, rows: int, columns: int, spread: int = 40, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(-spread, spread + 1, (batch, channels, rows, columns), generator=generator).float()


def _latent(channels: int, rows: int, columns: int, batch: int = 1) -> Tensor:
    return 3.0 * torch.randn(batch, channels, rows, columns, generator=torch.Generator().manual_seed(8))


def _same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("spread", [3, SYMBOL_MAX])
def test_mean_and_index_do_not_depend_on_the_number_of_threads(
    tables: EntropyTables, threads: Callable[[int], None], spread: int
) -> None:
    z_hat = _symbols(tables.hyper_channels, 5, 7, spread)
    found = []
    for count in (1, 2):
        threads(count)
        found.append(tables.model.mean_and_index(z_hat))
    assert _same(found[0], found[1])


def test_mean_and_index_do_not_depend_on_the_batch_or_on_the_layout(tables: EntropyTables) -> None:
    batch = _symbols(tables.hyper_channels, 5, 7, batch=3)
    together = tables.model.mean_and_index(batch.contiguous(memory_format=torch.channels_last))
    for i in range(3):
        alone = tables.model.mean_and_index(batch[i : i + 1].clone())
        assert _same(alone, (together[0][i : i + 1], together[1][i : i + 1]))


def test_mean_and_index_do_not_depend_on_autocast_or_on_mkldnn(tables: EntropyTables) -> None:
    z_hat = _symbols(tables.hyper_channels, 5, 7)
    plain = tables.model.mean_and_index(z_hat)
    with torch.autocast("cpu", torch.bfloat16), torch.backends.mkldnn.flags(enabled=False):
        assert _same(plain, tables.model.mean_and_index(z_hat))


def test_a_device_that_finds_other_numbers_is_not_used(small: EntropyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = small.freeze()
    z_hat = _symbols(8, 3, 3)
    expected = tables.model.mean_and_index(z_hat)
    monkeypatch.setattr(IntegerConv, "to", lambda self, device: self._replace(bias=self.bias + 2.0**self.fraction_bits))
    tables.run_on(torch.device("cpu"))
    assert _same(expected, tables.model.mean_and_index(z_hat))


@pytest.mark.parametrize("side", [1, 3])
def test_sums_that_are_exact_are_told_from_sums_that_are_nearly_so(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-(1 << 15), (1 << 15) + 1, (6, 40 * side**2), generator=generator).double()
    layer = IntegerConv(weight, torch.zeros(6, 1, dtype=torch.float64), 20, side)
    assert layer.is_exact(1 << 12)
    original = IntegerConv.sums

    def one_unit_off(self: IntegerConv, columns_BKL: Tensor) -> Tensor:
        sums = original(self, columns_BKL)
        sums[0, 3, 1234] += 1
        return sums

    monkeypatch.setattr(IntegerConv, "sums", one_unit_off)
    assert not layer.is_exact(1 << 12)


def test_a_device_that_emulates_float64_for_large_products_is_not_used(
    small: EntropyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = small.freeze()
    original, moved = IntegerConv.sums, IntegerConv.to
    there: set[int] = set()

    def to(self: IntegerConv, device: torch.device) -> IntegerConv:
        layer = moved(self, device)._replace(bias=self.bias.clone())
        there.add(id(layer.bias))
        return layer

    def emulated(self: IntegerConv, columns_BKL: Tensor) -> Tensor:
        sums = original(self, columns_BKL)
        large = columns_BKL.shape[2] >= 1 << 12 and id(self.bias) in there
        return (sums / 2**8).round() * 2**8 if large else sums

    monkeypatch.setattr(IntegerConv, "to", to)
    monkeypatch.setattr(IntegerConv, "sums", emulated)
    here = tables.model
    tables.run_on(torch.device("cpu"))
    assert tables.model is not here, "small products are exact"
    tables.model = here
    monkeypatch.setattr(entropy_tables, "_positions", lambda device: 1 << 12)  # as of a GPU
    tables.run_on(torch.device("cpu"))
    assert tables.model is here


def test_a_device_without_float64_is_not_used(small: EntropyModel) -> None:
    tables = small.freeze()
    tables.run_on(torch.device("meta"))
    assert tables.model.mean_and_index(_symbols(8, 3, 3))[0].device.type == "cpu"


def test_means_are_multiples_of_a_64th_and_indexes_lie_in_the_table(tables: EntropyTables) -> None:
    m, index = tables.model.mean_and_index(_symbols(tables.hyper_channels, 4, 4))
    assert torch.equal(m * 64, (m * 64).round())
    assert 0 <= int(index.min()) <= int(index.max()) < SCALE_LEVELS


def test_decoding_gives_what_encoding_saw(tables: EntropyTables) -> None:
    y, z = _latent(tables.latent_channels, 8, 12, 3), _latent(tables.hyper_channels, 2, 3, 3)
    coded = encode(tables, y, z)
    assert torch.equal(tables.decode(coded.streams, (2, 3), MIDDLE.expand(3)), coded.y_hat_BMhw)


@pytest.mark.parametrize("count", [1, 2])
def test_streams_do_not_depend_on_the_batch_or_on_threads(
    tables: EntropyTables, threads: Callable[[int], None], count: int
) -> None:
    y, z = _latent(tables.latent_channels, 8, 12, 3), _latent(tables.hyper_channels, 2, 3, 3)
    threads(count)
    together = encode(tables, y, z)
    for i in range(3):
        alone = encode(tables, y[i : i + 1], z[i : i + 1])
        assert alone.streams == [together.streams[i]]


def test_y_hat_is_within_half_a_step_of_y(small: EntropyModel) -> None:
    y = _latent(12, 8, 12)
    assert float((encode(small.freeze(), y, _latent(8, 2, 3)).y_hat_BMhw - y).abs().max()) <= 0.5


def test_tables_that_were_stored_code_the_same_bytes(small: EntropyModel) -> None:
    fresh = small.freeze()
    stored = EntropyTables({name: tensor.clone() for name, tensor in fresh.tensors.items()})
    y, z = _latent(12, 8, 8), _latent(8, 2, 2)
    assert encode(fresh, y, z).streams == encode(stored, y, z).streams


@pytest.mark.parametrize("limit", [SYMBOL_MIN, SYMBOL_MAX])
def test_symbols_at_the_limit_are_coded(small: EntropyModel, limit: int) -> None:
    tables = small.freeze()
    y, z = torch.full((1, 12, 4, 4), 1e3 * limit), torch.full((1, 8, 1, 1), 1e3 * limit)
    coded = encode(tables, y, z)
    m, _ = tables.model.mean_and_index(torch.full((1, 8, 1, 1), float(limit)))
    assert torch.equal(coded.y_hat_BMhw - m, torch.full((1, 12, 4, 4), float(limit)))
    assert torch.equal(tables.decode(coded.streams, (1, 1), MIDDLE), coded.y_hat_BMhw)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused(small: EntropyModel, value: float) -> None:
    with pytest.raises(UsageError, match="not finite"):
        encode(small.freeze(), torch.full((1, 12, 4, 4), value), torch.zeros(1, 8, 1, 1))


def _put(position: tuple[int, ...], value: int) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[position] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("z.cdf", lambda t: t.float(), "'z.cdf' is missing or not int32"),
        ("y.length", lambda t: t.long(), "'y.length' is missing or not int32"),
        ("z.cdf", lambda t: t[0], "'z' has rows that do not agree"),
        ("z.cdf", lambda t: t[:3], "'z' has rows that do not agree"),
        ("y.offset", lambda t: t[:3], "'y' has rows that do not agree"),
        ("y.length", _put((0,), 2), "'y' has a row length outside its table"),
        ("y.length", _put((0,), -1), "'y' has a row length outside its table"),
        ("y.length", _put((0,), 1 << 20), "'y' has a row length outside its table"),
        ("y.offset", _put((0,), SYMBOL_MIN - 1), "'y' has symbols outside -16384..16383"),
        ("z.offset", _put((0,), SYMBOL_MAX), "'z' has symbols outside -16384..16383"),
        ("z.cdf", _put((1, 0), 1), "'z' has a row that is no cumulative distribution"),
        ("z.cdf", _put((1, 1), 0), "'z' has a row that is no cumulative distribution"),
        ("y.cdf", _put((0, 2), 1 << 16), "'y' has a row that is no cumulative distribution"),
        ("h_s.0.weight", lambda t: t.float() + 0.5, "'h_s.0' is not of integers"),
        ("h_s.1.bias", lambda t: t.double() * float("nan"), "'h_s.1' is not of integers"),
        ("h_s.2.fraction_bits", lambda t: torch.zeros(3, dtype=torch.int32), "'h_s.2' is not of integers"),
        ("h_s.2.fraction_bits", lambda t: t + 5000, "'h_s.2' has 50[0-9][0-9] fraction bits"),
        ("h_s.0.weight", _put((0, 0, 0, 0), 1 << 16), "'h_s.0' has a weight outside its range"),
        ("h_s.0.bias", lambda t: torch.full_like(t, -(1 << 63)), "'h_s.0' has a weight outside its range"),
        ("h_s.0.weight", lambda t: t[:, :, :2], "'h_s.0' has an unexpected shape"),
        ("h_s.0.weight", lambda t: t[:-1], "'h_s.0' has an unexpected shape"),
        ("h_s.1.weight", lambda t: t[:, :-1], "'h_s.1' has 7 inputs and 32 outputs, which do not fit"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(
    small: EntropyModel, name: str, change: Callable[[Tensor], Tensor], said: str
) -> None:
    tensors = dict(small.freeze().tensors)
    tensors[name] = change(tensors[name])
    with pytest.raises(UsageError, match=said):
        EntropyTables(tensors)


def test_every_tensor_of_the_tables_is_asked_for(small: EntropyModel) -> None:
    tensors = small.freeze().tensors
    for name in tensors:
        with pytest.raises(UsageError, match=f"{name}' is missing"):
            EntropyTables({other: tensor for other, tensor in tensors.items() if other != name})


def test_tables_with_another_number_of_scales_are_refused(small: EntropyModel) -> None:
    tensors = dict(small.freeze().tensors)
    for part in ("cdf", "length", "offset"):
        tensors[f"y.{part}"] = tensors[f"y.{part}"][:10]
    with pytest.raises(UsageError, match="10 scale levels where 64 were expected"):
        EntropyTables(tensors)
