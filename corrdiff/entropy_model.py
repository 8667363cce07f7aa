"""Latents <-> bytes.

    training                                 coding (frozen at export)
    y --H_a--> z --+u--> p(z)                z_hat = round(z) --rANS--> z bytes
               z_hat --H_s--> m, sigma       z_hat --integer H_s--> m, scale index
    y --+u--> N(m, sigma) * U                s = round(y - m) --rANS--> y bytes;  y_hat = s + m

Training uses float networks (`EntropyModel`). Coding uses `EntropyTables`, which `freeze` makes from them once: range
tables, and H_s as integers, so that the decoder finds the same indexes and m on every device. Coding state is never
rebuilt from weights.

Shapes: y_BMhw latent at 1/16 after the gain; z_BNuv hyperlatent at 1/64; u_* uniform noise in [-0.5, 0.5).
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdiff.config import TransformConfig
from corrdiff.errors import UsageError
from corrdiff.transforms import SCALE_INDEX_BIAS, SCALE_INDEX_GAIN, HyperAnalysis, HyperSynthesis

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # compressai scripts its layers with torch.jit at import
    from compressai.ans import RansDecoder, RansEncoder
    from compressai.entropy_models import EntropyBottleneck, GaussianConditional
    from compressai.entropy_models.entropy_models import pmf_to_quantized_cdf

SCALE_MIN = 0.11
"""Smallest sigma in the table (compressai's scale bound)."""
SCALE_MAX = 64.0
SCALE_LEVELS = 64
SCALE_LOG_STEP = math.log(SCALE_MAX / SCALE_MIN) / (SCALE_LEVELS - 1)

SYMBOL_LIMIT = 1 << 14
"""Symbols lie in [-SYMBOL_LIMIT, SYMBOL_LIMIT]; a decoded one outside it marks a hostile stream."""

MEAN_FRACTION_BITS = 6
"""m is a whole multiple of 2**-6, exact in float32."""
_ACTIVATION_FRACTION_BITS = 8
_ACTIVATION_LIMIT = 1 << 20
_WEIGHT_LIMIT = 1 << 15
_PRIOR_RANGE = 256
"""Support searched for the table of one hyperlatent channel; rarer symbols take the escape code."""
_PRIOR_TAIL = 2.0**-15


class LatentRate(NamedTuple):
    """What training needs of the latents."""

    y_hat_BMhw: Tensor
    """Rounded, gradient passed straight through."""
    bits_B: Tensor
    """Estimated bits of y and z together."""


class Coded(NamedTuple):
    """One picture's latents as bytes, and as the decoder will see them."""

    z_stream: bytes
    y_stream: bytes
    y_hat_Mhw: Tensor


def round_straight_through(x: Tensor) -> Tensor:
    """round(x) forwards, identity backwards."""
    return x + (x.round() - x).detach()


def scale_of_index(index: Tensor) -> Tensor:
    """sigma at a continuous position in the scale table, clamped to the table."""
    return SCALE_MIN * torch.exp(index.clamp(0, SCALE_LEVELS - 1) * SCALE_LOG_STEP)


class FactorizedPrior(EntropyBottleneck):  # type: ignore[misc]
    """p(z): the fully factorised density of arXiv 1802.01436, with the noise given by the caller.

    The median is fixed at 0, so that z_hat is a whole number.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.quantiles.requires_grad_(False)

    def forward(self, z_tilde_BNuv: Tensor) -> Tensor:
        """Likelihood of each element, integrated over a unit interval around it."""
        values = z_tilde_BNuv.transpose(0, 1).reshape(self.channels, 1, -1)
        likelihood = self.likelihood_lower_bound(self._likelihood(values)[0])
        b, n, u, v = z_tilde_BNuv.shape
        out: Tensor = likelihood.reshape(n, b, u, v).transpose(0, 1)
        return out


class EntropyModel(nn.Module):
    """Hyperprior (arXiv 1802.01436, with means as in 1809.02736) over the gained latent, for training."""

    def __init__(self, config: TransformConfig) -> None:
        super().__init__()
        self.hyper_analysis = HyperAnalysis(config)
        self.hyper_synthesis = HyperSynthesis(config)
        self.prior = FactorizedPrior(config.hyper_channels)
        self.gaussian = GaussianConditional(None)

    def forward(self, y_BMhw: Tensor, u_y_BMhw: Tensor | None, u_z_BNuv: Tensor | None) -> LatentRate:
        """Rate with additive noise (training), or with rounding where the noise is None (evaluation)."""
        y_BMhw = y_BMhw.float()
        z_BNuv = self.hyper_analysis(y_BMhw)
        z_hat_BNuv = round_straight_through(z_BNuv)
        m_BMhw, index_BMhw = self.hyper_synthesis(z_hat_BNuv)
        y_hat_BMhw = round_straight_through(y_BMhw - m_BMhw) + m_BMhw
        z_rate_BNuv = z_hat_BNuv if u_z_BNuv is None else z_BNuv + u_z_BNuv
        y_rate_BMhw = y_hat_BMhw if u_y_BMhw is None else y_BMhw + u_y_BMhw
        p_z = self.prior(z_rate_BNuv)
        p_y = self.gaussian._likelihood(y_rate_BMhw, scale_of_index(index_BMhw), m_BMhw)
        p_y = self.gaussian.likelihood_lower_bound(p_y)
        bits_B = -(p_z.log2().flatten(1).sum(1) + p_y.log2().flatten(1).sum(1))
        return LatentRate(y_hat_BMhw, bits_B)

    @torch.no_grad()
    def freeze(self) -> EntropyTables:
        """Range tables and the integer network, from the weights as they are now."""
        tensors = {
            **_table_tensors("z", *_prior_tables(self.prior)),
            **_table_tensors("y", *_gaussian_tables()),
            **_integer_layers(self.hyper_synthesis),
        }
        return EntropyTables(tensors)


class EntropyTables:
    """Everything that coding depends on, as integer tensors that are stored with the codec and only ever loaded."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        """Raises `UsageError` where a tensor is missing or is not of integers."""
        for name in ("z.cdf", "z.length", "z.offset", "y.cdf", "y.length", "y.offset"):
            if name not in tensors or tensors[name].dtype != torch.int32:
                raise UsageError(f"codec tables: '{name}' is missing or not int32")
        self.tensors = tensors
        self._z = RangeTable.of(tensors, "z")
        self._y = RangeTable.of(tensors, "y")
        if len(self._y.cdfs) != SCALE_LEVELS:
            raise UsageError(f"codec tables: {len(self._y.cdfs)} scale levels where {SCALE_LEVELS} were expected")
        self._layers = [_IntegerConv.of(tensors, f"h_s.{i}") for i in range(3)]
        channels = self.hyper_channels
        for i, layer in enumerate(self._layers):
            # A pixel shuffle by 2 follows each of the first two; the last gives m and index.
            outputs, inputs = len(layer.bias), layer.weight.shape[1] // 9
            if inputs != channels or outputs % (4 if i < 2 else 2):
                raise UsageError(f"codec tables: 'h_s.{i}' has {inputs} inputs and {outputs} outputs, which do not fit")
            channels = outputs // 4

    @property
    def hyper_channels(self) -> int:
        return len(self._z.cdfs)

    def mean_and_index(self, z_hat_Nuv: Tensor) -> tuple[Tensor, Tensor]:
        """H_s in integers: z symbols -> (m_Mhw float32 in multiples of 2**-6, scale index int64), on the CPU.

        Every product and sum is a whole number under 2**53 held in float64, so the result does not depend on the
        order of summation, the number of threads or the device.
        """
        h = z_hat_Nuv.to("cpu", torch.float64)
        for layer in self._layers[:2]:
            h = layer(h, _ACTIVATION_FRACTION_BITS)
            h = F.pixel_shuffle(h[None], 2)[0].clamp(0, _ACTIVATION_LIMIT)
        out = self._layers[2](h, MEAN_FRACTION_BITS)
        m, index = out.chunk(2, dim=0)
        index = torch.floor(index / 2**MEAN_FRACTION_BITS + 0.5).clamp(0, SCALE_LEVELS - 1)
        limit = SYMBOL_LIMIT << MEAN_FRACTION_BITS
        return (m.clamp(-limit, limit) / 2**MEAN_FRACTION_BITS).float(), index.long()

    def encode(self, y_Mhw: Tensor, z_Nuv: Tensor) -> Coded:
        """Code one picture. `y_Mhw` is the gained latent, `z_Nuv` the unrounded hyperlatent; y_hat is on the CPU.

        Raises `UsageError` where the latents are not finite.
        """
        y, z = y_Mhw.detach().cpu().float(), z_Nuv.detach().cpu().float()
        if not (torch.isfinite(y).all() and torch.isfinite(z).all()):
            raise UsageError("the codec's analysis gave values that are not finite; its weights are damaged")
        z_hat = z.round().clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT)
        m, index = self.mean_and_index(z_hat)
        symbols = (y - m).round().clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT)
        z_stream = self._z.encode(_flat(z_hat), _channel_index(z_hat.shape))
        y_stream = self._y.encode(_flat(symbols), _flat(index))
        return Coded(z_stream, y_stream, symbols + m)

    def decode(self, z_stream: bytes, y_stream: bytes, z_shape: tuple[int, int]) -> Tensor:
        """y_hat_Mhw on the CPU. Raises `ValueError` where the streams do not hold symbols in range."""
        shape = torch.Size((self.hyper_channels, *z_shape))
        z_hat = self._z.decode(z_stream, _channel_index(shape)).reshape(shape)
        m, index = self.mean_and_index(z_hat)
        symbols = self._y.decode(y_stream, _flat(index)).reshape(m.shape)
        return symbols.float() + m


class RangeTable(NamedTuple):
    """Cumulative frequencies at 16 bits for each index, in the form that compressai's rANS coder takes."""

    cdfs: list[list[int]]
    lengths: list[int]
    offsets: list[int]

    @staticmethod
    def of(tensors: dict[str, Tensor], name: str) -> RangeTable:
        """Read and check one table. Raises `UsageError` where a row is not a cumulative distribution."""
        cdf, length, offset = (tensors[f"{name}.{part}"] for part in ("cdf", "length", "offset"))
        rows = cdf.shape[0] if cdf.ndim == 2 else 0
        if rows == 0 or length.shape != (rows,) or offset.shape != (rows,):
            raise UsageError(f"codec tables: '{name}' has rows that do not agree")
        if int(length.min()) < 3 or int(length.max()) > cdf.shape[1]:
            raise UsageError(f"codec tables: '{name}' has a row length outside its table")
        for row, n in zip(cdf.tolist(), length.tolist(), strict=True):
            if row[0] != 0 or row[n - 1] != 1 << 16 or any(a >= b for a, b in itertools.pairwise(row[:n])):
                raise UsageError(f"codec tables: '{name}' has a row that is no cumulative distribution")
        return RangeTable(cdf.tolist(), length.tolist(), offset.tolist())

    def encode(self, symbols: list[int], indexes: list[int]) -> bytes:
        # The encoder makes room for a 32-bit word a symbol and writes up to 2 + n / 2 of them: no fewer than 4 symbols.
        missing = max(0, 4 - len(symbols))
        symbols, indexes = symbols + self.offsets[:1] * missing, indexes + [0] * missing
        coded: bytes = RansEncoder().encode_with_indexes(symbols, indexes, self.cdfs, self.lengths, self.offsets)
        return coded

    def decode(self, data: bytes, indexes: list[int]) -> Tensor:
        """Raises `ValueError` for a symbol out of range, and for more bytes than that many symbols can fill."""
        if len(data) > 8 + 5 * max(4, len(indexes)):  # the coder's state; 16 bits a symbol and 24 where it is escaped
            raise ValueError("a stream is longer than its symbols")
        # The decoder reads 32-bit words without looking at the end: give it room for the most that it can ask for. An
        # escape announces up to 15 times as many bits as it takes itself.
        room = bytes(64 + 16 * (len(data) + len(indexes)))
        symbols = torch.tensor(
            RansDecoder().decode_with_indexes(data + room, indexes, self.cdfs, self.lengths, self.offsets),
            dtype=torch.int64,
        )
        if symbols.numel() and int(symbols.abs().max()) > SYMBOL_LIMIT:
            raise ValueError("a decoded symbol is out of range")
        return symbols


class _IntegerConv(NamedTuple):
    """A 3x3 convolution, zero-padded, on whole numbers held in float64."""

    weight: Tensor
    bias: Tensor
    fraction_bits: int
    """Binary places of the accumulator."""

    @staticmethod
    def of(tensors: dict[str, Tensor], name: str) -> _IntegerConv:
        try:
            weight, bias, fraction = (tensors[f"{name}.{part}"] for part in ("weight", "bias", "fraction_bits"))
        except KeyError as error:
            raise UsageError(f"codec tables: {error} is missing") from None
        if weight.ndim != 4 or 0 in weight.shape or weight.shape[2:] != (3, 3) or bias.shape != weight.shape[:1]:
            raise UsageError(f"codec tables: '{name}' has an unexpected shape")
        dtypes = weight.dtype, bias.dtype, fraction.dtype
        if dtypes != (torch.int32, torch.int64, torch.int32) or fraction.numel() != 1:
            raise UsageError(f"codec tables: '{name}' is not of integers")
        if weight.double().abs().max() > _WEIGHT_LIMIT or bias.double().abs().max() >= 1 << 50:
            raise UsageError(f"codec tables: '{name}' has a weight outside its range")
        if not _ACTIVATION_FRACTION_BITS <= int(fraction) <= 64:
            raise UsageError(f"codec tables: '{name}' has {int(fraction)} fraction bits")
        return _IntegerConv(weight.double().flatten(1), bias.double(), int(fraction))

    def __call__(self, x_CHW: Tensor, out_fraction_bits: int) -> Tensor:
        columns = F.unfold(x_CHW[None], 3, padding=1)[0]
        accumulated = self.weight @ columns + self.bias[:, None]
        shift = 2.0 ** (self.fraction_bits - out_fraction_bits)
        return torch.floor(accumulated / shift + 0.5).reshape(-1, *x_CHW.shape[1:])


def _flat(x: Tensor) -> list[int]:
    values: list[int] = x.reshape(-1).to(torch.int64).tolist()
    return values


def _channel_index(shape: torch.Size) -> list[int]:
    values: list[int] = torch.arange(shape[0]).repeat_interleave(shape[1] * shape[2]).tolist()
    return values


def _table_tensors(name: str, cdf: Tensor, length: Tensor, offset: Tensor) -> dict[str, Tensor]:
    parts = {"cdf": cdf, "length": length, "offset": offset}
    return {f"{name}.{part}": tensor.to("cpu", torch.int32).contiguous() for part, tensor in parts.items()}


def _pack_rows(rows: list[Tensor]) -> Tensor:
    """Cumulative rows of different lengths -> one table padded with zeros."""
    packed = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.int32)
    for i, row in enumerate(rows):
        packed[i, : len(row)] = row
    return packed


def _prior_tables(prior: FactorizedPrior) -> tuple[Tensor, Tensor, Tensor]:
    support = torch.arange(-_PRIOR_RANGE, _PRIOR_RANGE + 1, dtype=torch.float32)
    device = next(prior.parameters()).device
    p = prior(support.expand(prior.channels, -1)[None, :, None].to(device))[0, :, 0].double().cpu()
    rows: list[Tensor] = []
    offsets: list[int] = []
    for p_channel in p:
        kept = (p_channel > _PRIOR_TAIL).nonzero()[:, 0].tolist() or [_PRIOR_RANGE]
        low, high = min(kept[0], _PRIOR_RANGE), max(kept[-1], _PRIOR_RANGE)
        pmf = p_channel[low : high + 1]
        rows.append(_quantised_cdf(pmf))
        offsets.append(low - _PRIOR_RANGE)
    lengths = torch.tensor([len(row) for row in rows])
    return _pack_rows(rows), lengths, torch.tensor(offsets)


def _quantised_cdf(pmf: Tensor) -> Tensor:
    """16-bit cumulative frequencies of a distribution and, behind it, of the escape code."""
    tail = (1.0 - pmf.sum()).clamp(min=2.0**-16)
    cdf: Tensor = pmf_to_quantized_cdf(torch.cat([pmf, tail[None]]).float())
    return cdf


def _gaussian_tables() -> tuple[Tensor, Tensor, Tensor]:
    gaussian = GaussianConditional(None)
    gaussian.update_scale_table(scale_of_index(torch.arange(float(SCALE_LEVELS))).tolist())
    return gaussian.quantized_cdf, gaussian.cdf_length, gaussian.offset


def _integer_layers(h_s: HyperSynthesis) -> dict[str, Tensor]:
    """Weights of H_s as whole numbers with a power-of-two scale of their own for each layer."""
    tensors: dict[str, Tensor] = {}
    fraction_in = 0
    for i, conv in enumerate((h_s.conv1, h_s.conv2, h_s.conv3)):
        weight, bias = conv.weight.detach().double().cpu(), conv.bias
        assert bias is not None
        bias64 = bias.detach().double().cpu()
        if i == 2:  # fold what HyperSynthesis.forward does to the index half
            half = weight.shape[0] // 2
            gain = torch.ones(weight.shape[0], dtype=torch.float64)
            gain[half:] = SCALE_INDEX_GAIN
            weight, bias64 = weight * gain[:, None, None, None], bias64 * gain
            bias64[half:] += SCALE_INDEX_BIAS
        largest = max(float(weight.abs().max()), 1e-6)
        bits = min(20, math.floor(math.log2((_WEIGHT_LIMIT - 1) / largest)))
        fraction = fraction_in + bits
        tensors[f"h_s.{i}.weight"] = (weight * 2.0**bits).round().to(torch.int32).contiguous()
        tensors[f"h_s.{i}.bias"] = (bias64 * 2.0**fraction).round().to(torch.int64).contiguous()
        tensors[f"h_s.{i}.fraction_bits"] = torch.tensor(fraction, dtype=torch.int32)
        fraction_in = _ACTIVATION_FRACTION_BITS
    return tensors
