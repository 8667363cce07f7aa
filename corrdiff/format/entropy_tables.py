"""Latents <-> bytes, the same on every device.

    z_hat = round(z) --rANS--> z bytes
    z_hat --integer H_s--> m, scale index
    s = round(y - m) --rANS--> y bytes;   y_hat = s + m

Everything here is whole numbers that were fixed at export (`entropy_model.EntropyModel.freeze`) and are only ever
loaded: range tables, and H_s as integer convolutions. What the decoder depends on is therefore no function of the
device, the number of threads, the memory format, the batch or the library.

Shapes: y_BMhw latent at 1/16 after the gain; z_BNuv hyperlatent at 1/64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff.errors import UsageError
from corrdiff.format.range_coder import SYMBOL_MAX, SYMBOL_MIN, RangeTables

SCALE_LEVELS = 64
"""Rows of the y table: scales of the Gaussian, geometrically spaced."""

MEAN_FRACTION_BITS = 6
"""m is a whole multiple of 2**-6, which is exact in float32."""
ACTIVATION_FRACTION_BITS = 8
WEIGHT_LIMIT = 1 << 15
_ACTIVATION_LIMIT = 1 << 20
_MOST_CHANNELS = 1 << 14
"""9 * 2**14 products of a weight and an activation stay under 2**53."""
_PROBE = (3, 5)
"""Size of the hyperlatent with which a device is tried."""

In = TypeVar("In")
Out = TypeVar("Out")


class Symbols(NamedTuple):
    """The latents of one tile of a picture as whole numbers, on the CPU: what is coded, and what it must decode to."""

    z_Nuv: npt.NDArray[np.int16]
    y_Mhw: npt.NDArray[np.int16]
    index_Mhw: npt.NDArray[np.uint8]
    """Which table codes each symbol of y."""
    y_hat_Mhw: npt.NDArray[np.float32]


class LatentStreams(NamedTuple):
    """The latents of one tile of a picture as bytes."""

    z: bytes
    y: bytes


class EntropyTables:
    """Everything that coding depends on, as integer tensors."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        """Check the tensors; `UsageError` where one is missing, is not of integers, or does not fit the others."""
        for name in ("z.cdf", "z.length", "z.offset", "y.cdf", "y.length", "y.offset"):
            if name not in tensors or tensors[name].dtype != torch.int32:
                raise UsageError(f"codec tables: '{name}' is missing or not int32")
        self.tensors = tensors
        self._z, self._y = (
            RangeTables(name, *(tensors[f"{name}.{part}"].numpy() for part in ("cdf", "length", "offset")))
            for name in ("z", "y")
        )
        if len(self._y) != SCALE_LEVELS:
            raise UsageError(f"codec tables: {len(self._y)} scale levels where {SCALE_LEVELS} were expected")
        self._layers = [_IntegerConv.of(tensors, f"h_s.{i}") for i in range(3)]
        channels = self.hyper_channels
        for i, layer in enumerate(self._layers):
            # A pixel shuffle by 2 follows each of the first two; the last gives m and index.
            outputs, inputs = len(layer.bias), layer.weight.shape[1] // 9
            if inputs != channels or inputs > _MOST_CHANNELS or outputs % (4 if i < 2 else 2):
                raise UsageError(f"codec tables: 'h_s.{i}' has {inputs} inputs and {outputs} outputs, which do not fit")
            channels = outputs // 4
        self._device = torch.device("cpu")

    @property
    def hyper_channels(self) -> int:
        """Count the channels of z, N."""
        return len(self._z)

    @property
    def latent_channels(self) -> int:
        """Count the channels of y, M."""
        return len(self._layers[2].bias) // 2

    def run_on(self, device: torch.device) -> None:
        """Run the integer H_s on that device from now on, if it finds there what the CPU finds."""
        generator = torch.Generator().manual_seed(0)
        z_hat = torch.randint(-64, 65, (2, self.hyper_channels, *_PROBE), generator=generator)
        expected = self.mean_and_index(z_hat)
        layers, before = self._layers, self._device
        try:
            self._layers, self._device = [layer.to(device) for layer in layers], device
            found = self.mean_and_index(z_hat)
            if all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(expected, found, strict=True)):
                return
        except (RuntimeError, TypeError):  # a device without float64
            pass
        self._layers, self._device = layers, before

    def mean_and_index(self, z_hat_BNuv: Tensor) -> tuple[Tensor, Tensor]:
        """Run H_s in integers: z symbols -> (m_BMhw float32 in multiples of 2**-6, scale index_BMhw uint8).

        Every product and sum is a whole number under 2**53 held in float64, so the result does not depend on the
        order of summation, and with it not on threads, layout, batch or device.
        """
        h = z_hat_BNuv.to(self._device, torch.float64)
        for layer in self._layers[:2]:
            h = F.pixel_shuffle(layer(h, ACTIVATION_FRACTION_BITS), 2).clamp(0, _ACTIVATION_LIMIT)
        m, index = self._layers[2](h, MEAN_FRACTION_BITS).chunk(2, dim=1)
        index = torch.floor(index / 2**MEAN_FRACTION_BITS + 0.5).clamp(0, SCALE_LEVELS - 1)
        limit = SYMBOL_MAX << MEAN_FRACTION_BITS
        return (m.clamp(-limit, limit) / 2**MEAN_FRACTION_BITS).float(), index.to(torch.uint8)

    def quantise(self, y_BMhw: Tensor, z_BNuv: Tensor) -> tuple[list[Symbols], Tensor]:
        """Quantise gained latents and unrounded hyperlatents to the symbols of each picture of a batch, and y_hat_BMhw.

        Raises `UsageError` where the latents are not finite.
        """
        y, z = y_BMhw.detach().float(), z_BNuv.detach().float()
        if not (torch.isfinite(y).all() and torch.isfinite(z).all()):
            raise UsageError("the codec's analysis gave values that are not finite; its weights are damaged")
        z_hat = z.round().clamp(SYMBOL_MIN, SYMBOL_MAX)
        m, index = self.mean_and_index(z_hat)
        symbols = (y.to(m.device) - m).round().clamp(SYMBOL_MIN, SYMBOL_MAX)
        y_hat = symbols + m
        columns = (z_hat.to(torch.int16), symbols.to(torch.int16), index, y_hat)
        return [Symbols(*row) for row in zip(*(c.cpu().numpy() for c in columns), strict=True)], y_hat

    def code(self, symbols: Sequence[Symbols]) -> list[LatentStreams]:
        """Code the latents of tiles to bytes, over the cores."""

        def one(s: Symbols) -> LatentStreams:
            z = self._z.encode(s.z_Nuv.ravel().astype(np.int32), _channel_index(s.z_Nuv.shape))
            return LatentStreams(z, self._y.encode(s.y_Mhw.ravel().astype(np.int32), s.index_Mhw.ravel()))

        return _over_cores(one, symbols)

    def decode(self, z_streams: Sequence[bytes], y_streams: Sequence[bytes], z_shape: tuple[int, int]) -> Tensor:
        """Decode streams to y_hat_BMhw. Raises `ValueError` where a stream is not what `code` writes."""
        shape = (self.hyper_channels, *z_shape)
        channel = _channel_index(shape)
        z = np.stack(_over_cores(lambda data: self._z.decode(data, channel), z_streams))
        m, index = self.mean_and_index(torch.from_numpy(z).reshape(-1, *shape))
        indexes = index.flatten(1).cpu().numpy()
        s = np.stack(_over_cores(lambda pair: self._y.decode(*pair), list(zip(y_streams, indexes, strict=True))))
        return torch.from_numpy(s).reshape(m.shape).to(m.device, torch.float32) + m


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
        if weight.double().abs().max() > WEIGHT_LIMIT or bias.double().abs().max() >= 1 << 50:
            raise UsageError(f"codec tables: '{name}' has a weight outside its range")
        if not ACTIVATION_FRACTION_BITS <= int(fraction) <= 64:
            raise UsageError(f"codec tables: '{name}' has {int(fraction)} fraction bits")
        return _IntegerConv(weight.double().flatten(1), bias.double()[:, None], int(fraction))

    def to(self, device: torch.device) -> _IntegerConv:
        return _IntegerConv(self.weight.to(device), self.bias.to(device), self.fraction_bits)

    def __call__(self, x_BCHW: Tensor, out_fraction_bits: int) -> Tensor:
        # Not conv2d: it may choose an algorithm (Winograd, FFT) that is not a sum of products.
        accumulated = self.weight @ F.unfold(x_BCHW, 3, padding=1) + self.bias
        shift = 2.0 ** (self.fraction_bits - out_fraction_bits)
        return torch.floor(accumulated / shift + 0.5).reshape(len(x_BCHW), -1, *x_BCHW.shape[2:])


def _channel_index(shape: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    return np.repeat(np.arange(shape[0], dtype=np.uint16), shape[1] * shape[2])


def _over_cores(work: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    """Do the work on as many threads as torch may use, results in order: the coder leaves Python's lock alone."""
    workers = min(len(items), torch.get_num_threads())
    if workers < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))
