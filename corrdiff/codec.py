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
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff import coding, correction, diffusion, heap
from corrdiff.coding import Pending
from corrdiff.config import DEFAULT_FIDELITY, DEFAULT_QUALITY, HYPER_STRIDE, LATENT_STRIDE, CodecConfig
from corrdiff.config import Settings as Settings
from corrdiff.correction import Grid, Parts
from corrdiff.errors import UsageError
from corrdiff.fitting import Fit
from corrdiff.format import bitstream
from corrdiff.format.bitstream import BitstreamError, Header, Streams
from corrdiff.format.entropy_tables import EntropyTables, Symbols
from corrdiff.format.noise import format_noise
from corrdiff.networks.model import CorrDiffModel
from corrdiff.perceptual import PerceptualMap
from corrdiff.picture import Picture
from corrdiff.tiling import Latents, Layout

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


class Preview(NamedTuple):
    """What a picture would become, known before the diffusion has run."""

    bytes: int
    """Of the file without its factors."""
    mse: float
    """Of D's picture, in grey levels squared."""


class CorrDiffCodec:
    """A trained codec on one device."""

    def __init__(
        self,
        model: CorrDiffModel,
        tables: EntropyTables,
        fingerprint: bytes,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        perceptual: PerceptualMap | None = None,
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
        headers = self._headers(images, settings, [settings.quality] * len(images))
        return [
            Encoded(coding.pack(header, streams, factors), picture, factors)
            for header, streams, factors, picture in self._encode(images, headers, settings, self.tables.code, on_tile)
        ]

    def encode_batch(
        self, images: Sequence[Picture], settings: Settings, qualities: Sequence[int] | None = None,
        latents: Sequence[Tensor] | None = None,
    ) -> list[Pending]:  # fmt: skip
        """The part of `compress_batch` that needs the networks; `coding.write` does the rest, anywhere.

        `qualities` are those of each picture, where they differ; `latents` theirs, where they are known already.
        """
        headers = self._headers(images, settings, qualities or [settings.quality] * len(images))
        return [
            Pending(header, symbols, picture, factors)
            for header, symbols, factors, picture in self._encode(images, headers, settings, list, None, latents)
        ]

    @torch.inference_mode()
    def latents(self, images: Sequence[Picture], settings: Settings) -> list[Tensor]:
        """Of pictures of one size: each tile's y_BMhw before the gain, for `preview` and `encode_batch`."""
        layout = coding.layout_of(self._headers(images, settings, [settings.quality])[0])
        return [self._analyse(images, layout, i, j) for i, j in layout]

    @torch.inference_mode()
    def preview(
        self, images: Sequence[Picture], latents: Sequence[Tensor], settings: Settings, qualities: Sequence[int]
    ) -> list[Preview]:
        """What each picture would become at its quality: rANS and one pass of D, a small part of an encode."""
        headers = self._headers(images, settings, qualities)
        layout = coding.layout_of(headers[0])
        streams, read = self._quantised(layout, headers, lambda i, j: latents[layout.index(i, j)], self.tables.code)
        squared_B = torch.zeros(len(images), dtype=torch.float64, device=self.device)
        for i, j in layout:
            rows, columns = layout.core(i, j)
            d_BCHW = self._decode_privileged(read.window(i, j))[:, :, rows, columns]
            squared_B += (d_BCHW - self._core(images, layout, i, j)).square().sum(dim=(1, 2, 3), dtype=torch.float64)
        squares = (squared_B * 127.5**2 / images[0].size).tolist()
        return [
            Preview(len(bitstream.pack(header, [Streams(b"", s.z, s.y) for s in tiles])), mse)
            for header, tiles, mse in zip(headers, _by_picture(streams, layout), squares, strict=True)
        ]

    def _headers(self, images: Sequence[Picture], settings: Settings, qualities: Sequence[int]) -> list[Header]:
        _check(images)
        height, width = images[0].shape[:2]
        config = self.config.diffusion
        steps, side = settings.steps or config.steps, settings.tile_for(height, width)
        return [
            Header(self.fingerprint, width, height, quality, steps, config.grid, config.factor_bits, side)
            for quality in qualities
        ]

    def _analyse(self, images: Sequence[Picture], layout: Layout, i: int, j: int) -> Tensor:
        """y_BMhw of a tile's padded core, before the gain."""
        row, column = layout.rows[i], layout.columns[j]
        x_BCHW = self._to_tensor(images, slice(row.begin, row.end), slice(column.begin, column.end))
        with self._autocast():
            y_BMhw: Tensor = self.model.analysis(_pad(x_BCHW))
        top, left = ((s.start - s.begin) // LATENT_STRIDE for s in (row, column))
        rows, columns = (s.padded // LATENT_STRIDE for s in (row, column))
        return y_BMhw[:, :, top : top + rows, left : left + columns].float()

    def _quantised(
        self, layout: Layout, headers: Sequence[Header], y_of: Callable[[int, int], Tensor],
        keep: Callable[[list[Symbols]], list[T]],
    ) -> tuple[dict[tuple[int, int], list[T]], Latents]:  # fmt: skip
        """y_hat / g_q of each tile, where a window asks for it; what is kept of its symbols, of each picture."""
        g_BM11 = self._gain([header.quality for header in headers])
        kept: dict[tuple[int, int], list[T]] = {}

        def load(i: int, j: int) -> Tensor:
            y_BMhw = y_of(i, j) * g_BM11
            symbols, y_hat_BMhw = self.tables.quantise(y_BMhw, self.model.entropy.hyper_analysis(y_BMhw))
            kept[i, j] = keep(symbols)
            return y_hat_BMhw.to(self.device) / g_BM11

        return kept, Latents(layout, load)

    @torch.inference_mode()
    def _encode(
        self, images: Sequence[Picture], headers: Sequence[Header], settings: Settings,
        keep: Callable[[list[Symbols]], list[T]], on_tile: OnTile | None, known: Sequence[Tensor] | None = None,
    ) -> Iterator[tuple[Header, list[T], list[npt.NDArray[np.uint8]], Picture]]:  # fmt: skip
        """Of each picture: its header; of each tile what is kept of its symbols, and its factors; the decoded one."""
        header, layout = headers[0], coding.layout_of(headers[0])
        height, width, cell, bits = header.height, header.width, header.grid, header.factor_bits

        def y_of(i: int, j: int) -> Tensor:
            return self._analyse(images, layout, i, j) if known is None else known[layout.index(i, j)]

        kept, latents = self._quantised(layout, headers, y_of, keep)
        out = [np.zeros((height, width, 3), np.uint8) for _ in images]
        levels: list[list[npt.NDArray[np.uint8]]] = []
        for i, j in layout:
            rows, columns = layout.core(i, j)
            x_BCHW = self._core(images, layout, i, j)
            grid = Grid(layout.rows[i].size, layout.columns[j].size, cell)
            fitted: list[Tensor] = []

            def factors_of(step: int, parts: Parts) -> Tensor:
                fitted.append(fit(parts.crop(rows, columns)))  # noqa: B023 (used within this round only)
                return correction.dequantise(fitted[-1], bits)  # noqa: B023

            y_hat_BMhw = latents.window(i, j)
            d_BCHW = self._decode_privileged(y_hat_BMhw)
            d_core_BCHW = d_BCHW[:, :, rows, columns]
            fit = Fit(x_BCHW, d_core_BCHW, grid, bits, settings.fidelity, self._perceptual)
            x_0_BCHW = self._trajectory(y_hat_BMhw, d_BCHW, layout, (i, j), header.steps, grid, factors_of)
            self._paste(out, x_0_BCHW, layout, i, j)
            levels.append(list(torch.stack(fitted, dim=1).to("cpu", torch.uint8).numpy()))
            _tile_done(layout, i, j, on_tile)
        return zip(headers, _by_picture(kept, layout), map(list, zip(*levels, strict=True)), out, strict=True)

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
        if any(coding.batch_key(p.header) != coding.batch_key(header) for p in parsed):
            raise UsageError("the files of a batch must agree in width, height, steps, factor grid and tiles")
        layout = coding.layout_of(header)
        g_BM11 = self._gain([p.header.quality for p in parsed])
        latents = Latents(layout, lambda i, j: self._read_latent(parsed, layout, i, j).to(self.device) / g_BM11)
        out = [np.zeros((header.height, header.width, 3), np.uint8) for _ in files]
        for i, j in layout:
            y_hat_BMhw = latents.window(i, j)
            x_0_BCHW = d_BCHW = self._decode_privileged(y_hat_BMhw)
            if decoding != "privileged":
                grid = Grid(layout.rows[i].size, layout.columns[j].size, header.grid)
                g_SBPRC = torch.stack([coding.read_factors(p, grid, layout.index(i, j)) for p in parsed], dim=1)
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
        x_t_BCHW = format_noise(height, width, row.begin, column.begin).to(self.device).repeat(batch, 1, 1, 1)
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

    def _core(self, images: Sequence[Picture], layout: Layout, i: int, j: int) -> Tensor:
        """The pixels of a tile's core."""
        row, column = layout.rows[i], layout.columns[j]
        return self._to_tensor(
            images, slice(row.start, row.start + row.size), slice(column.start, column.start + column.size)
        )

    def _to_tensor(self, images: Sequence[Picture], rows: slice, columns: slice) -> Tensor:
        x_BHWC = torch.from_numpy(np.stack([image[rows, columns] for image in images])).to(self.device)
        return x_BHWC.permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1)


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


def _by_picture(kept: dict[tuple[int, int], list[T]], layout: Layout) -> list[list[T]]:
    """What was kept of each tile's pictures -> of each picture's tiles."""
    return list(map(list, zip(*(kept[tile] for tile in layout), strict=True)))


def _tile_done(layout: Layout, i: int, j: int, on_tile: OnTile | None) -> None:
    if on_tile:
        on_tile(layout.index(i, j) + 1, len(layout))
    if len(layout) > 1:
        heap.give_back_freed_memory()


def _pad(x_BCHW: Tensor) -> Tensor:
    """Repeat the last row and column up to a multiple of 64."""
    height, width = x_BCHW.shape[2:]
    x = F.pad(x_BCHW, (0, -width % HYPER_STRIDE, 0, -height % HYPER_STRIDE), mode="replicate")
    return x.contiguous(memory_format=torch.channels_last)
