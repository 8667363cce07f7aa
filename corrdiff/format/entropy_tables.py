"""Latents <-> bytes, the same on every device.

    z_hat = round(z) --rANS--> z bytes
    z_hat, and what is decoded of y already --integer networks--> m, scale index     (latent_models.py)
    s = round(y - m) --rANS--> y bytes;   y_hat = s + m

Everything here is whole numbers that were fixed at export (`entropy_model.EntropyModel.freeze`) and are only ever
loaded: range tables, and networks as integer convolutions. What the decoder depends on is therefore no function of the
device, the number of threads, the memory format, the batch or the library.

Shapes: y_BMhw latent at 1/16 after the gain; z_BNuv hyperlatent at 1/64; n symbols of y in the order of their coding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrdiff.errors import UsageError
from corrdiff.format.latent_models import (
    SCALE_LEVELS,
    Hyperprior,
    HyperSynthesis,
    LatentModel,
    Run,
    SlicedContext,
    Touching,
)
from corrdiff.format.range_coder import SYMBOL_MAX, SYMBOL_MIN, RangeDecoder, RangeTables

_PROBE = (3, 5)
"""Size of the hyperlatent with which a device is tried."""

THRESHOLD_ONE = 1 << 16
"""Thresholds of symbols are whole numbers of this fraction of a step."""
_PROBE_POSITIONS = 1 << 12
"""Positions of a large picture: libraries choose other algorithms for them."""

In = TypeVar("In")
Out = TypeVar("Out")


class Symbols(NamedTuple):
    """The latents of one tile of a picture as whole numbers, on the CPU: what is coded, and what it must decode to."""

    z_Nuv: npt.NDArray[np.int16]
    y_n: npt.NDArray[np.int16]
    index_n: npt.NDArray[np.uint8]
    """Which table codes each symbol of y."""
    y_hat_Mhw: npt.NDArray[np.float32]

    def same_as(self, other: Symbols) -> bool:
        """Whether all numbers are the same."""
        return (
            np.array_equal(self.z_Nuv, other.z_Nuv) and np.array_equal(self.y_n, other.y_n)
            and np.array_equal(self.index_n, other.index_n) and np.array_equal(self.y_hat_Mhw, other.y_hat_Mhw)
        )  # fmt: skip


class LatentStreams(NamedTuple):
    """The same as bytes."""

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
        self.model = _latent_model(tensors, self.hyper_channels)
        self._device = torch.device("cpu")
        threshold = tensors.get("y.threshold")
        if threshold is not None and (
            threshold.dtype != torch.int32 or threshold.ndim != 2 or len(threshold) != SCALE_LEVELS
        ):
            raise UsageError("codec tables: 'y.threshold' does not fit")
        self._threshold = None if threshold is None else threshold.float() / THRESHOLD_ONE

    @property
    def hyper_channels(self) -> int:
        """Count the channels of z, N."""
        return len(self._z)

    @property
    def latent_channels(self) -> int:
        """Count the channels of y, M."""
        return self.model.latent_channels

    @property
    def skips_padding(self) -> bool:
        """Say whether latents that reach no pixel of the picture are 0 and not coded."""
        return isinstance(self.model, SlicedContext)

    @property
    def device(self) -> torch.device:
        """Say where the integer networks run."""
        return self._device

    def run_on(self, device: torch.device) -> None:
        """Run the integer networks on that device from now on, if they find there what they find on the CPU."""
        generator = torch.Generator().manual_seed(0)
        z_hat = torch.randint(-64, 65, (2, self.hyper_channels, *_PROBE), generator=generator)
        height, width = (4 * side for side in _PROBE)
        y = 4 * torch.randn((2, self.latent_channels, height, width), generator=generator)
        quality_B = torch.tensor([3, 100])
        expected = self.quantise(y, z_hat.float(), quality_B)[0]
        before = self.model, self._device, self._threshold
        try:
            self.model, self._device = self.model.to(device), device
            self._threshold = None if self._threshold is None else self._threshold.to(device)
            found = self.quantise(y.to(device), z_hat.to(device, torch.float32), quality_B)[0]
            same = all(one.same_as(other) for one, other in zip(expected, found, strict=True))
            if same and all(layer.is_exact(_positions(device)) for layer in self.model.layers):
                return
        except (RuntimeError, TypeError):  # a device without float64
            pass
        self.model, self._device, self._threshold = before

    def quantise(
        self, y_BMhw: Tensor, z_BNuv: Tensor, quality_B: Tensor, touching: Touching | None = None
    ) -> tuple[list[Symbols], Tensor]:
        """Quantise gained latents and unrounded hyperlatents to the symbols of each picture of a batch, and y_hat_BMhw.

        Latents beyond the rows and columns that touch the picture are not coded, and are 0; those of the first codecs,
        which have no context, are coded wherever they are.

        Raises `UsageError` where the latents are not finite.
        """
        y, z = y_BMhw.detach().float(), z_BNuv.detach().float()
        if not torch.isfinite(y).all() & torch.isfinite(z).all():
            raise UsageError("the codec's analysis gave values that are not finite; its weights are damaged")
        z_hat = z.round().clamp(SYMBOL_MIN, SYMBOL_MAX)
        y = y.to(self._device)
        symbols: list[Tensor] = []
        indexes: list[Tensor] = []

        def rounded(run: Run, m: Tensor, index: Tensor) -> Tensor:
            s = self._symbols(run.of(y) - m, index).clamp(SYMBOL_MIN, SYMBOL_MAX)
            symbols.append(s.to(torch.int16).flatten(1))
            indexes.append(index.flatten(1))
            return s

        y_hat = self.model.walk(z_hat, quality_B, rounded, touching)
        columns = (z_hat.to(torch.int16), torch.cat(symbols, 1), torch.cat(indexes, 1), y_hat)
        return [Symbols(*row) for row in zip(*(c.cpu().numpy() for c in columns), strict=True)], y_hat

    def y_hat_of(self, y_BMhw: Tensor, z_BNuv: Tensor, quality_B: Tensor) -> Tensor:
        """Quantise to y_hat_BMhw alone, on the tables' device."""
        y = y_BMhw.detach().float().to(self._device)
        z_hat = z_BNuv.detach().round()
        return self.model.walk(z_hat, quality_B, lambda run, m, index: self._symbols(run.of(y) - m, index))

    def _symbols(self, v: Tensor, index: Tensor) -> Tensor:
        """Choose the symbols of values v from their means: the nearest, or one nearer to 0 where it costs less.

        Of the nearest symbol s, |v| - |s| is in [-1/2, 1/2]. The one below adds 1 + 2 (|v| - |s|) to the squared error
        and saves bits that depend on |s| and the table alone: so a threshold for |v| - |s| says which is better.
        """
        s = v.round()
        if self._threshold is None:
            return s
        size = s.abs()
        threshold = self._threshold[index.long(), size.clamp(max=self._threshold.shape[1] - 1).long()]
        return torch.where(v.abs() - size < threshold, (size - 1) * s.sign(), s)

    def code(self, symbols: Sequence[Symbols]) -> list[LatentStreams]:
        """Code the latents of tiles to bytes, over the cores."""

        def one(s: Symbols) -> LatentStreams:
            z = self._z.encode(s.z_Nuv.ravel().astype(np.int32), _channel_index(s.z_Nuv.shape))
            return LatentStreams(z, self._y.encode(s.y_n.astype(np.int32), s.index_n))

        return _over_cores(one, symbols)

    def decode(
        self, streams: Sequence[LatentStreams], z_shape: tuple[int, int], quality_B: Tensor,
        touching: Touching | None = None,
    ) -> Tensor:  # fmt: skip
        """Decode streams to y_hat_BMhw. Raises `ValueError` where a stream is not what `code` writes."""
        shape = (self.hyper_channels, *z_shape)
        channel = _channel_index(shape)
        z = np.stack(_over_cores(lambda stream: self._z.decode(stream.z, channel), streams))
        decoders = [RangeDecoder(self._y, stream.y) for stream in streams]

        def read(_: Run, m: Tensor, index: Tensor) -> Tensor:
            indexes = list(index.flatten(1).cpu().numpy())
            taken = _over_cores(lambda pair: pair[0].take(pair[1]), list(zip(decoders, indexes, strict=True)))
            return torch.from_numpy(np.stack(taken)).reshape(m.shape)

        y_hat = self.model.walk(torch.from_numpy(z).reshape(-1, *shape), quality_B, read, touching)
        for decoder in decoders:
            decoder.expect_end()
        return y_hat


def _positions(device: torch.device) -> int:
    """How many positions a device is tried with; the CPU's own library sums in float64 whatever the size."""
    return 1 if device.type == "cpu" else _PROBE_POSITIONS


def _latent_model(tensors: dict[str, Tensor], hyper_channels: int) -> LatentModel:
    """The model that a codec's tables hold. Raises `UsageError` where it is incomplete."""
    if "y.slices" in tensors:
        return SlicedContext.of(tensors, hyper_channels)
    synthesis = HyperSynthesis.of(tensors, hyper_channels)
    if synthesis.layers[2].outputs % 2:
        raise UsageError("codec tables: 'h_s.2' gives no pairs of mean and scale")
    return Hyperprior(synthesis)


def _channel_index(shape: tuple[int, ...]) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    return np.repeat(np.arange(shape[0], dtype=np.uint16), shape[1] * shape[2])


def _over_cores(work: Callable[[In], Out], items: Sequence[In]) -> list[Out]:
    """Do the work on as many threads as torch may use, results in order: the coder leaves Python's lock alone."""
    workers = min(len(items), torch.get_num_threads())
    if workers < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, items))
