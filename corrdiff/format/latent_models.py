"""How symbols of the latent are predicted from what is decoded already, in whole numbers.

A model walks through the latent in runs: for each it says mean and scale of every symbol, is told the symbols, and goes
on. The encoder tells it what it rounds, the decoder what it reads: the walk is one and the same.

    z_hat --integer H_s--> m, scale index                            (Hyperprior: one run)
    z_hat --integer H_s--> h;  h, slices before --> m, scale index   (SlicedContext: two runs a slice of channels,
                                                                      the second of which sees the first)

Context never leaves the tile. At the picture's end a tile is padded to whole positions of z: there SlicedContext walks
through the rows and columns alone whose functions reach a pixel of the picture (`Touching`); latents beyond them are 0,
and nothing is coded.

Shapes: y_BMhw latent at 1/16, z_BNuv hyperlatent at 1/64, L positions of a run, m its channels; qualities are counted
in sixteenths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff.config import QUALITIES, QUALITY_PARTS
from corrdiff.errors import UsageError
from corrdiff.format.integer_layers import ACTIVATION_FRACTION_BITS, ACTIVATION_LIMIT, IntegerConv
from corrdiff.format.range_coder import SYMBOL_MAX

SCALE_LEVELS = 64
"""Rows of the y table: scales, geometrically spaced."""

MEAN_FRACTION_BITS = 6
"""m is a whole multiple of 2**-6, which is exact in float32."""
_MEAN_ONE = 1 << MEAN_FRACTION_BITS
_MEAN_LIMIT = SYMBOL_MAX << MEAN_FRACTION_BITS

CONTEXT_LIMIT = 8
"""Larger latents are this to the context; a quarter of them is what it sees."""
_CONTEXT_LIMIT = CONTEXT_LIMIT * _MEAN_ONE
"""In units of a mean. A quarter of a multiple of 2**-6 is one of 2**-8, an activation: the number stays."""
STRIP_POSITIONS = 1 << 12
"""Positions whose neighbourhoods are in memory at a time, about."""


Touching = tuple[int, int]
"""How many rows and columns of a tile's latent, from the first on, have to do with its pixels."""


class Run(NamedTuple):
    """Symbols that are predicted together: some channels at some positions of the walk."""

    channels: slice
    rows: int
    columns: int
    """Of the walk; what lies beyond is not coded."""
    positions: Tensor | None
    """[L], row by row; None for all."""

    def of(self, y_BMhw: Tensor) -> Tensor:
        """Take the run's part of a latent: [B, m, L]."""
        y_BmL = y_BMhw[:, self.channels, : self.rows, : self.columns].flatten(2)
        return y_BmL if self.positions is None else y_BmL[:, :, self.positions]


SymbolsOf = Callable[[Run, Tensor, Tensor], Tensor]
"""(run, its means [B, m, L] in symbols as float32, its scale indexes as uint8) -> its symbols [B, m, L]."""


class HyperSynthesis(NamedTuple):
    """H_s up to its last layer's input, and that layer."""

    layers: tuple[IntegerConv, IntegerConv, IntegerConv]

    @staticmethod
    def of(tensors: dict[str, Tensor], hyper_channels: int) -> HyperSynthesis:
        """Take H_s from a codec's tables. Raises `UsageError` where its layers do not fit each other."""
        layers = tuple(IntegerConv.of(tensors, f"h_s.{i}") for i in range(3))
        channels = hyper_channels
        for i, layer in enumerate(layers):
            # A pixel shuffle by 2 follows each of the first two.
            if layer.side != 3 or layer.inputs != channels or (i < 2 and layer.outputs % 4):
                raise UsageError(
                    f"codec tables: 'h_s.{i}' has {layer.inputs} inputs and {layer.outputs} outputs, which do not fit"
                )
            channels = layer.outputs // 4
        first, second, third = layers
        return HyperSynthesis((first, second, third))

    def to(self, device: torch.device) -> HyperSynthesis:
        """Copy the layers to a device."""
        first, second, third = (layer.to(device) for layer in self.layers)
        return HyperSynthesis((first, second, third))

    def __call__(self, z_hat_BNuv: Tensor, out_fraction_bits: int) -> Tensor:
        """Run H_s: z symbols -> the last layer's output at 1/16."""
        h = z_hat_BNuv.to(self.layers[0].weight.device, torch.float64)
        for layer in self.layers[:2]:
            h = F.pixel_shuffle(layer(h, ACTIVATION_FRACTION_BITS), 2).clamp(0, ACTIVATION_LIMIT)
        return self.layers[2](h, out_fraction_bits)


class Hyperprior(NamedTuple):
    """Mean and scale of each symbol from z alone."""

    synthesis: HyperSynthesis

    @property
    def layers(self) -> list[IntegerConv]:
        """List all convolutions."""
        return list(self.synthesis.layers)

    @property
    def latent_channels(self) -> int:
        """Count the channels of y, M."""
        return self.synthesis.layers[2].outputs // 2

    def to(self, device: torch.device) -> Hyperprior:
        """Copy the model to a device."""
        return Hyperprior(self.synthesis.to(device))

    def mean_and_index(self, z_hat_BNuv: Tensor) -> tuple[Tensor, Tensor]:
        """Run H_s: z symbols -> (m_BMhw float32 in multiples of 2**-6, scale index_BMhw uint8)."""
        m, index = self.synthesis(z_hat_BNuv, MEAN_FRACTION_BITS).chunk(2, dim=1)
        return _mean(m), _scale_index(index)

    def walk(
        self, z_hat_BNuv: Tensor, quality_B: Tensor, symbols_of: SymbolsOf, touching: Touching | None = None
    ) -> Tensor:
        """Go through the one run of all symbols, whatever they have to do with the picture."""
        m_BMhw, index_BMhw = self.mean_and_index(z_hat_BNuv)
        height, width = m_BMhw.shape[2:]
        run = Run(slice(None), height, width, None)
        s_BML = symbols_of(run, m_BMhw.flatten(2), index_BMhw.flatten(2))
        return s_BML.to(m_BMhw.device, torch.float32).reshape(m_BMhw.shape) + m_BMhw


class Context(NamedTuple):
    """What predicts one run of a slice: 3x3, ReLU, 1x1."""

    hidden: IntegerConv
    out: IntegerConv

    def to(self, device: torch.device) -> Context:
        """Copy the layers to a device."""
        return Context(self.hidden.to(device), self.out.to(device))

    def at(self, x_BChw: Tensor, parity: int) -> Tensor:
        """Run both layers at the positions of one colour of the checkerboard: [B, 2 m, L], in units of a mean."""
        height, width = x_BChw.shape[2:]
        rows = max(1, STRIP_POSITIONS // width)
        padded = F.pad(x_BChw, (1, 1, 1, 1))
        strips = []
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            columns = F.unfold(padded[:, :, top : bottom + 2], 3)
            here = checkerboard(bottom - top, width, (parity + top) % 2, x_BChw.device)
            h = self.hidden.at(columns[:, :, here], ACTIVATION_FRACTION_BITS).clamp(0, ACTIVATION_LIMIT)
            strips.append(self.out.at(h, MEAN_FRACTION_BITS))
        return torch.cat(strips, dim=2)


class SlicedContext(NamedTuple):
    """Mean and scale of each symbol from z, from the slices of channels before, and from the other half of its slice.

    Half of the positions of a slice, one colour of a checkerboard (arXiv 2103.15306), are decoded first; the other half
    sees them. Slices of channels are the idea of arXiv 2007.08739.
    """

    synthesis: HyperSynthesis
    slices: tuple[int, ...]
    """Channels of each."""
    contexts: tuple[tuple[Context, Context], ...]
    """Of each slice: for its first half, and for its second."""
    scale_bias_QM: Tensor
    """What is added to the scale index of each channel at each quality level, in units of a mean; float64."""

    @staticmethod
    def of(tensors: dict[str, Tensor], hyper_channels: int) -> SlicedContext:
        """Take the model from a codec's tables. Raises `UsageError` where its parts do not fit each other."""
        synthesis = HyperSynthesis.of(tensors, hyper_channels)
        slices = tuple(int(n) for n in tensors["y.slices"].tolist())
        bias = tensors.get("y.scale_bias")
        if bias is None or bias.dtype != torch.int32 or bias.shape != (QUALITIES, sum(slices)):
            raise UsageError("codec tables: 'y.scale_bias' is missing or does not fit")
        contexts: list[tuple[Context, Context]] = []
        channels = synthesis.layers[2].outputs
        for k, size in enumerate(slices):
            both = []
            for half, inputs in enumerate((channels, channels + 2 * size)):
                name = f"context.{k}.{half}"
                context = Context(IntegerConv.of(tensors, f"{name}.hidden"), IntegerConv.of(tensors, f"{name}.out"))
                fits = context.hidden.side == 3 and context.out.side == 1 and context.hidden.inputs == inputs
                if not fits or context.out.inputs != context.hidden.outputs or context.out.outputs != 2 * size:
                    raise UsageError(f"codec tables: '{name}' does not fit the slices {slices}")
                both.append(context)
            contexts.append((both[0], both[1]))
            channels += 2 * size
        return SlicedContext(synthesis, slices, tuple(contexts), bias.double())

    @property
    def layers(self) -> list[IntegerConv]:
        """List all convolutions."""
        contexts = [layer for halves in self.contexts for context in halves for layer in context]
        return [*self.synthesis.layers, *contexts]

    @property
    def latent_channels(self) -> int:
        """Count the channels of y, M."""
        return sum(self.slices)

    def to(self, device: torch.device) -> SlicedContext:
        """Copy the model to a device."""
        contexts = tuple((first.to(device), second.to(device)) for first, second in self.contexts)
        return SlicedContext(self.synthesis.to(device), self.slices, contexts, self.scale_bias_QM.to(device))

    def walk(
        self, z_hat_BNuv: Tensor, quality_B: Tensor, symbols_of: SymbolsOf, touching: Touching | None = None
    ) -> Tensor:
        """Go through two runs for each slice of channels; without `touching`, through all positions."""
        h = self.synthesis(z_hat_BNuv, ACTIVATION_FRACTION_BITS).clamp(0, ACTIVATION_LIMIT)
        rows, columns = h.shape[2:]
        h = h if touching is None else h[:, :, : touching[0], : touching[1]]
        batch, _, height, width = h.shape
        bias_BM1 = self._bias(quality_B.to(h.device))[:, :, None]
        seen, slices, first = h, [], 0
        for size, halves in zip(self.slices, self.contexts, strict=True):
            channels = slice(first, first + size)
            y_hat_BmL = torch.zeros(batch, size, height * width, dtype=torch.float64, device=h.device)
            for parity, context in enumerate(halves):
                half = y_hat_BmL.reshape(batch, size, height, width)
                x = torch.cat([seen, context_of(half, _CONTEXT_LIMIT)], 1) if parity else seen
                m, index = context.at(x, parity).chunk(2, dim=1)
                run = Run(channels, height, width, checkerboard(height, width, parity, h.device))
                m = m.clamp(-_MEAN_LIMIT, _MEAN_LIMIT)
                s = symbols_of(run, _mean(m), _scale_index(index + bias_BM1[:, channels]))
                y_hat_BmL[:, :, run.positions] = s.to(h.device, torch.float64) * _MEAN_ONE + m
            y_hat = y_hat_BmL.reshape(batch, size, height, width)
            seen = torch.cat([seen, context_of(y_hat, _CONTEXT_LIMIT)], 1)
            slices.append(y_hat)
            first += size
        return F.pad((torch.cat(slices, 1) / _MEAN_ONE).float(), (0, columns - width, 0, rows - height))

    def _bias(self, quality_B: Tensor) -> Tensor:
        """The scale bias of each picture, [B, M], between the levels on a straight line; exact."""
        level_B, part_B1 = quality_B // QUALITY_PARTS, (quality_B % QUALITY_PARTS)[:, None]
        last = len(self.scale_bias_QM) - 1
        below, above = self.scale_bias_QM[level_B], self.scale_bias_QM[(level_B + 1).clamp(max=last)]
        return ((QUALITY_PARTS - part_B1) * below + part_B1 * above) / QUALITY_PARTS


def context_of(y_hat_BmHW: Tensor, limit: float) -> Tensor:
    """What the context sees of a slice: each latent, at most as large as the limit, and its size."""
    near = y_hat_BmHW.clamp(-limit, limit)
    return torch.cat([near, near.abs()], dim=1)


def dark_squares(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Which positions are of the colour of the upper left one, [height, width]: the half that is decoded first."""
    row, column = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    return (row + column) % 2 == 0


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def checkerboard(height: int, width: int, parity: int, device: torch.device | str = "cpu") -> Tensor:
    """The positions of one colour, [L], row by row; the upper left one has parity 0. Found on the CPU and copied: how
    many there are, a GPU would have to be waited for."""
    return (dark_squares(height, width) == (parity == 0)).flatten().nonzero()[:, 0].to(device)


def _mean(m: Tensor) -> Tensor:
    return (m.clamp(-_MEAN_LIMIT, _MEAN_LIMIT) / _MEAN_ONE).float()


def _scale_index(index: Tensor) -> Tensor:
    return torch.floor(index / _MEAN_ONE + 0.5).clamp(0, SCALE_LEVELS - 1).to(torch.uint8)


LatentModel = Hyperprior | SlicedContext
