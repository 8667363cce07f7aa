"""Pictures <-> bytes: the codec as it is used, on networks and tables that do not change any more.

    compress    x -> y, z -> streams -> y_hat -> D, trajectory with fitted factors   -> file
    decompress  file            -> streams -> y_hat -> D, trajectory with read factors -> picture

Both run the same `_trajectory`; they differ in who says the factors. A large picture is cut into tiles (`tiling.py`),
of which a few are in memory at a time.

Shapes: B batch, H W pixels, M latent channels, h w latent positions, S steps, P planes of factors, R C rows and columns
of factor cells. Pictures are contiguous (arithmetic on them is several times faster so), networks channels_last.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff import bitstream, correction, diffusion, heap
from corrdiff.bitstream import BitstreamError, Header, Streams
from corrdiff.config import DEFAULT_FIDELITY, DEFAULT_QUALITY, HYPER_STRIDE, LATENT_STRIDE, CodecConfig
from corrdiff.config import Settings as Settings
from corrdiff.correction import Fit, Grid, Parts, Perceptual
from corrdiff.entropy_tables import EntropyTables, LatentStreams, Symbols
from corrdiff.errors import UsageError
from corrdiff.model import CorrDiffModel
from corrdiff.tiling import Latents, Layout

Picture = npt.NDArray[np.uint8]
"""RGB, [H, W, 3]."""

Precision = Literal["fp32", "bf16"]
Decoding = Literal["corrected", "uncorrected", "privileged"]
T = TypeVar("T")
OnTile = Callable[[int, int], None]
"""Told how many tiles of how many are done."""


class Encoded(NamedTuple):
    """One compressed picture, and what the encoder saw on the way."""

    data: bytes
    """The file."""
    reconstruction: Picture
    """What the decoder will show, from the encoder's replay of it."""
    factors: list[npt.NDArray[np.uint8]]
    """Levels of each tile, [S, P, R, C]."""

    @property
    def bpp(self) -> float:
        """Bits of the whole file for each pixel."""
        height, width = self.reconstruction.shape[:2]
        return 8 * len(self.data) / (height * width)


class Pending(NamedTuple):
    """A picture that the networks are done with and that is not coded yet; for that the tables are enough."""

    header: Header
    symbols: list[Symbols]
    """Of each tile, row by row."""
    reconstruction: Picture
    factors: list[npt.NDArray[np.uint8]]


class CorrDiffCodec:
    """A trained codec on one device."""

    def __init__(
        self,
        model: CorrDiffModel,
        tables: EntropyTables,
        fingerprint: bytes,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        perceptual: Perceptual | None = None,
    ) -> None:
        """`perceptual`, on the same device, takes the place of the texture error when factors are fitted."""
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.tables = tables
        self.fingerprint = fingerprint
        self._perceptual = perceptual
        tables.run_on(self.device)
        heap.keep_freed_memory()

    @property
    def config(self) -> CodecConfig:
        config: CodecConfig = self.model.config
        return config

    def compress(
        self,
        image: Picture,
        quality: int = DEFAULT_QUALITY,
        fidelity: float = DEFAULT_FIDELITY,
        steps: int | None = None,
    ) -> bytes:
        """One RGB picture, uint8 [H, W, 3], any size from 1x1 -> the bytes of a .crdf file."""
        return self.compress_batch([image], Settings(quality, fidelity, steps))[0].data

    def decompress(
        self, data: bytes, decoding: Decoding = "corrected", max_pixels: int = bitstream.MAX_PIXELS
    ) -> Picture:
        """The bytes of a .crdf file -> RGB picture, uint8 [H, W, 3].

        Args:
            data: the whole file.
            decoding: "corrected" is the picture; "privileged" is D(y_hat) alone (fast), "uncorrected" the score network
                alone: both for comparison.
            max_pixels: larger pictures are refused.

        Raises:
            BitstreamError: the bytes are damaged, hostile, or of another codec.
        """
        return self.decompress_batch([data], decoding, max_pixels)[0]

    def compress_batch(
        self, images: Sequence[Picture], settings: Settings, on_tile: OnTile | None = None
    ) -> list[Encoded]:
        """Pictures of one size -> files. Raises `UsageError` for arrays that are no such pictures."""
        header, tiles, levels, shown = self._encode(images, settings, self.tables.code, on_tile)
        return [
            Encoded(_pack(header, list(streams), list(factors)), picture, list(factors))
            for streams, factors, picture in zip(
                zip(*tiles, strict=True), zip(*levels, strict=True), shown, strict=True
            )
        ]

    def encode_batch(self, images: Sequence[Picture], settings: Settings) -> list[Pending]:
        """The part of `compress_batch` that needs the networks; `write` does the rest, anywhere."""
        header, tiles, levels, shown = self._encode(images, settings, list, None)
        return [
            Pending(header, list(symbols), picture, list(factors))
            for symbols, factors, picture in zip(
                zip(*tiles, strict=True), zip(*levels, strict=True), shown, strict=True
            )
        ]

    @torch.inference_mode()
    def _encode(
        self, images: Sequence[Picture], settings: Settings, keep: Callable[[list[Symbols]], list[T]],
        on_tile: OnTile | None,
    ) -> tuple[Header, list[list[T]], list[list[npt.NDArray[np.uint8]]], list[Picture]]:  # fmt: skip
        """The header; of each tile what is kept of each picture's symbols, and its factors; the decoded pictures."""
        _check(images)
        height, width = images[0].shape[:2]
        diffusion_config = self.config.diffusion
        steps = settings.steps or diffusion_config.steps
        cell, bits = diffusion_config.grid, diffusion_config.factor_bits
        side = settings.tile_for(height, width)
        layout = Layout(height, width, side)
        g_BM11 = self._gain([settings.quality] * len(images))
        kept: dict[tuple[int, int], list[T]] = {}

        def load(i: int, j: int) -> Tensor:
            row, column = layout.rows[i], layout.columns[j]
            x_BCHW = self._to_tensor(images, slice(row.begin, row.end), slice(column.begin, column.end))
            with self._autocast():
                y_BMhw = self.model.analysis(_pad(x_BCHW))
            top, left = ((s.start - s.begin) // LATENT_STRIDE for s in (row, column))
            rows, columns = (s.padded // LATENT_STRIDE for s in (row, column))
            y_BMhw = y_BMhw[:, :, top : top + rows, left : left + columns].float() * g_BM11
            symbols, y_hat_BMhw = self.tables.quantise(y_BMhw, self.model.entropy.hyper_analysis(y_BMhw))
            kept[i, j] = keep(symbols)
            return y_hat_BMhw.to(self.device) / g_BM11

        latents = Latents(layout, load)
        out = [np.zeros((height, width, 3), np.uint8) for _ in images]
        levels: list[list[npt.NDArray[np.uint8]]] = []
        for i, j in layout:
            rows, columns = layout.core(i, j)
            row, column = layout.rows[i], layout.columns[j]
            x_BCHW = self._to_tensor(
                images, slice(row.start, row.start + row.size), slice(column.start, column.start + column.size)
            )
            grid = Grid(row.size, column.size, cell)
            fitted: list[Tensor] = []

            def factors_of(step: int, parts: Parts) -> Tensor:
                fitted.append(fit(parts.crop(rows, columns)))  # noqa: B023 (used within this round only)
                return correction.dequantise(fitted[-1], bits)  # noqa: B023

            y_hat_BMhw = latents.window(i, j)
            d_BCHW = self._decode_privileged(y_hat_BMhw)
            d_core_BCHW = d_BCHW[:, :, rows, columns]
            fit = Fit(x_BCHW, d_core_BCHW, grid, bits, settings.fidelity, self._perceptual)
            x_0_BCHW = self._trajectory(y_hat_BMhw, d_BCHW, layout, (i, j), steps, grid, factors_of)
            self._paste(out, x_0_BCHW, layout, i, j)
            levels.append(list(torch.stack(fitted, dim=1).to("cpu", torch.uint8).numpy()))
            _tile_done(layout, i, j, on_tile)
        header = Header(self.fingerprint, width, height, settings.quality, steps, cell, bits, side)
        return header, [kept[tile] for tile in layout], levels, out

    @torch.inference_mode()
    def decompress_batch(
        self,
        files: Sequence[bytes],
        decoding: Decoding = "corrected",
        max_pixels: int = bitstream.MAX_PIXELS,
        on_tile: OnTile | None = None,
    ) -> list[Picture]:
        """Files that agree in size, steps, grid and tiles -> pictures. See `decompress`."""
        if not files:
            raise UsageError("a batch needs at least one file")
        parsed = [bitstream.unpack(data, self.fingerprint, max_pixels) for data in files]
        header = parsed[0].header
        if any(batch_key(p.header) != batch_key(header) for p in parsed):
            raise UsageError("the files of a batch must agree in width, height, steps, factor grid and tiles")
        layout = Layout(header.height, header.width, header.tile)
        g_BM11 = self._gain([p.header.quality for p in parsed])
        latents = Latents(layout, lambda i, j: self._read_latent(parsed, layout, i, j).to(self.device) / g_BM11)
        out = [np.zeros((header.height, header.width, 3), np.uint8) for _ in files]
        for i, j in layout:
            y_hat_BMhw = latents.window(i, j)
            x_0_BCHW = d_BCHW = self._decode_privileged(y_hat_BMhw)
            if decoding != "privileged":
                grid = Grid(layout.rows[i].size, layout.columns[j].size, header.grid)
                g_SBPRC = torch.stack([_read_factors(p, grid, layout.index(i, j)) for p in parsed], dim=1)
                g_SBPRC = g_SBPRC.to(self.device)
                x_0_BCHW = self._trajectory(
                    y_hat_BMhw, d_BCHW, layout, (i, j), header.steps, grid,
                    (lambda step, _: g_SBPRC[step]) if decoding == "corrected" else None,  # noqa: B023 (this round only)
                )  # fmt: skip
            self._paste(out, x_0_BCHW, layout, i, j)
            _tile_done(layout, i, j, on_tile)
        return out

    def latents_of(self, x_BCHW: Tensor, q_B: Tensor) -> Tensor:
        """y_hat / g_q as a decoder would have it, for pictures in [-1, 1] whose sides are multiples of 64."""
        with self._autocast():
            y_BMhw, g_BM11 = self.model.latent(x_BCHW, q_B)
        with torch.autocast(self.device.type, enabled=False):
            z_hat_BNuv = self.model.entropy.hyper_analysis(y_BMhw).round()
        m_BMhw = self.tables.mean_and_index(z_hat_BNuv)[0].to(self.device)
        y_hat_BMhw: Tensor = ((y_BMhw - m_BMhw).round() + m_BMhw) / g_BM11
        return y_hat_BMhw

    def _read_latent(self, parsed: Sequence[bitstream.Bitstream], layout: Layout, i: int, j: int) -> Tensor:
        """y_hat of one tile of each file."""
        z_shape = layout.rows[i].padded // HYPER_STRIDE, layout.columns[j].padded // HYPER_STRIDE
        tiles = [p.tiles[layout.index(i, j)] for p in parsed]
        try:
            return self.tables.decode([t.z for t in tiles], [t.y for t in tiles], z_shape)
        except ValueError as error:
            raise BitstreamError(f"the coded latents are not valid: {error}") from None

    def _decode_privileged(self, y_hat_BMhw: Tensor) -> Tensor:
        with self._autocast():
            d_BCHW: Tensor = self.model.decoder(y_hat_BMhw)
        return d_BCHW.float().contiguous().clamp_(-1, 1)

    def _trajectory(
        self,
        y_hat_BMhw: Tensor,
        d_BCHW: Tensor,
        layout: Layout,
        tile: tuple[int, int],
        steps: int,
        grid: Grid,
        factors_of: Callable[[int, Parts], Tensor] | None,
    ) -> Tensor:
        """The reverse process on a tile's window.

        `factors_of(step, parts)` gives each step's factors [B, P, R, C]; without it D is not used.
        """
        batch, _, height, width = d_BCHW.shape
        row, column = layout.rows[tile[0]], layout.columns[tile[1]]
        with self._autocast():
            context = self.model.context(y_hat_BMhw)
        x_t_BCHW = diffusion.format_noise(height, width, row.begin, column.begin).to(self.device).repeat(batch, 1, 1, 1)
        start = diffusion.T_MAX
        if factors_of:
            start = diffusion.T_START
            x_t_BCHW = diffusion.add_noise(d_BCHW, x_t_BCHW, torch.full((batch,), start, device=self.device))
        for step, (t, t_next) in enumerate(itertools.pairwise(diffusion.sampling_times(steps, start))):
            with self._autocast():
                estimate = self.model.denoiser(x_t_BCHW, context, torch.full((batch,), t, device=self.device))
            x_0_BCHW: Tensor = estimate.float().contiguous().clamp_(-1, 1)
            if factors_of:
                parts = correction.split(x_0_BCHW, d_BCHW)
                top, left = row.start - row.begin, column.start - column.begin
                x_0_BCHW = correction.apply(parts, factors_of(step, parts), grid, top, left)
            if t_next > 0:
                x_t_BCHW = diffusion.ddim_step(x_t_BCHW, x_0_BCHW, t, t_next)
        return x_0_BCHW

    def _paste(self, pictures: list[Picture], x_BCHW: Tensor, layout: Layout, i: int, j: int) -> None:
        grey_BHWC = ((x_BCHW + 1) * 127.5).clamp_(0, 255).permute(0, 2, 3, 1).cpu().numpy()
        for picture, window_HWC in zip(pictures, grey_BHWC, strict=True):
            layout.paste(picture, window_HWC, i, j)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _gain(self, qualities: list[int]) -> Tensor:
        g_BM11: Tensor = self.model.gain(torch.tensor(qualities, device=self.device))
        return g_BM11

    def _to_tensor(self, images: Sequence[Picture], rows: slice, columns: slice) -> Tensor:
        x_BHWC = torch.from_numpy(np.stack([image[rows, columns] for image in images])).to(self.device)
        return x_BHWC.permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1)


def write(pending: Pending, tables: EntropyTables) -> bytes:
    """Code a picture: the bytes of a .crdf file."""
    return _pack(pending.header, tables.code(pending.symbols), pending.factors)


def verify(data: bytes, pending: Pending, tables: EntropyTables) -> None:
    """Decode a file to its latents and factors and compare them with what was to be coded.

    Raises `BitstreamError` where the file cannot be read or says something else.
    """
    header = pending.header
    parsed = bitstream.unpack(data, header.fingerprint, header.width * header.height)
    if parsed.header != header:
        raise BitstreamError("the file's header is not what was to be written")
    layout = Layout(header.height, header.width, header.tile)
    for (i, j), streams, symbols, levels in zip(layout, parsed.tiles, pending.symbols, pending.factors, strict=True):
        steps, planes, rows, columns = levels.shape
        try:
            y_hat_1Mhw = tables.decode([streams.z], [streams.y], symbols.z_Nuv[0].shape)
            found = correction.decode_factors(streams.factors, (steps, planes, rows, columns), header.factor_bits)
        except ValueError as error:
            raise BitstreamError(f"the file cannot be read back: {error}") from None
        if not np.array_equal(y_hat_1Mhw[0].cpu().numpy(), symbols.y_hat_Mhw):
            raise BitstreamError(f"the latents of tile {layout.index(i, j)} decode to something else")
        if not np.array_equal(found, levels):
            raise BitstreamError(f"the factors of tile {layout.index(i, j)} decode to something else")


def _pack(header: Header, streams: list[LatentStreams], factors: list[npt.NDArray[np.uint8]]) -> bytes:
    bits = header.factor_bits
    tiles = [Streams(correction.encode_factors(f, bits), s.z, s.y) for s, f in zip(streams, factors, strict=True)]
    return bitstream.pack(header, tiles)


def _check(images: Sequence[Picture]) -> None:
    if not images:
        raise UsageError("a batch needs at least one picture")
    for image in images:
        if not isinstance(image, np.ndarray):
            raise UsageError(f"expected RGB uint8 pictures [H, W, 3], got {type(image).__name__}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UsageError(f"expected RGB uint8 pictures [H, W, 3], got {image.dtype} {list(image.shape)}")
        if image.shape != images[0].shape:
            raise UsageError("the pictures of a batch must have one size")


def _tile_done(layout: Layout, i: int, j: int, on_tile: OnTile | None) -> None:
    if on_tile:
        on_tile(layout.index(i, j) + 1, len(layout))
    if len(layout) > 1:
        heap.give_back_freed_memory()


def batch_key(header: Header) -> tuple[int, ...]:
    """Files that agree in this can be decoded together."""
    return header.width, header.height, header.steps, header.grid, header.factor_bits, header.tile


def _read_factors(parsed: bitstream.Bitstream, grid: Grid, tile: int) -> Tensor:
    """One tile's factors, [S, P, R, C]."""
    header = parsed.header
    shape = (header.steps, correction.PLANES, grid.rows, grid.columns)
    try:
        levels = correction.decode_factors(parsed.tiles[tile].factors, shape, header.factor_bits)
    except ValueError as error:
        raise BitstreamError(f"the correction factors are not valid: {error}") from None
    return correction.dequantise(torch.from_numpy(levels), header.factor_bits)


def _pad(x_BCHW: Tensor) -> Tensor:
    """Repeat the last row and column up to a multiple of 64."""
    height, width = x_BCHW.shape[2:]
    x = F.pad(x_BCHW, (0, -width % HYPER_STRIDE, 0, -height % HYPER_STRIDE), mode="replicate")
    return x.contiguous(memory_format=torch.channels_last)
