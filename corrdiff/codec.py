"""Pictures <-> bytes: the codec as it is used, on networks and tables that do not change any more.

    compress    x -> y, z -> streams -> y_hat -> D, trajectory with fitted factors   -> file
    decompress  file            -> streams -> y_hat -> D, trajectory with read factors -> picture

A large picture is cut into tiles (`tiling.py`), of which a few are in memory at a time.

Shapes: B batch, H W pixels, M latent channels, h w latent positions, S steps, P planes of factors, R C rows and columns
of factor cells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from corrdiff import coding, diffusion, heap, pixels, trajectory
from corrdiff.coding import Pending
from corrdiff.config import (
    DEFAULT_FIDELITY,
    DEFAULT_QUALITY,
    LATENT_STRIDE,
    QUALITY_PARTS,
    SQUARED_ERROR,
    T_MAX,
    CodecConfig,
)
from corrdiff.config import Settings as Settings
from corrdiff.errors import UsageError
from corrdiff.factors import FittedFactors, ReadFactors
from corrdiff.fitting import LEAST_SQUARES, Criterion
from corrdiff.format import bitstream
from corrdiff.format.bitstream import Bitstream, BitstreamError, Header, Streams
from corrdiff.format.entropy_tables import EntropyTables, Symbols
from corrdiff.inference import Networks
from corrdiff.inference import Precision as Precision
from corrdiff.latents import QuantisedLatents, ReadLatents
from corrdiff.networks.model import CorrDiffModel
from corrdiff.perceptual import PerceptualMap
from corrdiff.picture import Box, Picture
from corrdiff.tiling import Latents, Layout, Tile

Decoding = Literal["corrected", "uncorrected", "privileged"]
T = TypeVar("T")
OnTile = Callable[[int, int], None]
"""What is told how many tiles of how many are done."""


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
        """Compute the bits of the whole file for each pixel."""
        height, width = self.reconstruction.shape[:2]
        return 8 * len(self.data) / (height * width)


class Preview(NamedTuple):
    """What a picture would become, known before the diffusion has run."""

    bytes: int
    """The file's size without its factors."""
    mse: float
    """Mean squared error of D's picture, in grey levels squared."""


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
        """`perceptual`, on the same device, takes the place of the texture error when factors are fitted.

        Raises `UsageError` where the codec has no texture error.
        """
        if perceptual is not None and model.config.diffusion.criterion == SQUARED_ERROR:
            raise UsageError("this codec finds factors by least squares alone; no other criterion can take their place")
        self.device = torch.device(device)
        self.networks = Networks(model, self.device, precision)
        self.tables = tables
        self.fingerprint = fingerprint
        self._perceptual = perceptual
        tables.run_on(self.device)
        heap.keep_freed_memory()

    @property
    def model(self) -> CorrDiffModel:
        """Give the networks as they were trained."""
        return self.networks.model

    @property
    def config(self) -> CodecConfig:
        """Give what defines the networks, and how this codec samples."""
        config: CodecConfig = self.model.config
        return config

    def compress(
        self,
        image: Picture,
        quality: float = DEFAULT_QUALITY,
        fidelity: float = DEFAULT_FIDELITY,
        steps: int | None = None,
    ) -> bytes:
        """Compress one RGB picture, uint8 [H, W, 3] of any size from 1x1, to the bytes of a .crdf file."""
        return self.compress_batch([image], Settings(quality, fidelity, steps))[0].data

    def decompress(
        self, data: bytes, decoding: Decoding = "corrected", max_pixels: int = bitstream.MAX_PIXELS,
        box: tuple[int, int, int, int] | None = None,
    ) -> Picture:  # fmt: skip
        """Decompress the bytes of a .crdf file to an RGB picture, uint8 [H, W, 3].

        Args:
            data: the whole file.
            decoding: "corrected" is the picture; "privileged" is D(y_hat) alone (fast), "uncorrected" the score network
                alone: both for comparison.
            max_pixels: larger pictures are refused.
            box: (x, y, width, height) of the part that is wanted, which is what the whole has there; of a tiled picture
                no other tiles are decoded.

        Raises:
            BitstreamError: the bytes are damaged, hostile, or of another codec.
            UsageError: the box does not lie in the picture, or a file without steps is to be decoded uncorrected.
        """
        return self.decompress_batch([data], decoding, max_pixels, box=box)[0]

    @torch.inference_mode()
    def compress_batch(
        self, images: Sequence[Picture], settings: Settings, on_tile: OnTile | None = None
    ) -> list[Encoded]:
        """Compress pictures of one size to files. Raises `UsageError` for arrays that are no such pictures."""
        headers = self._headers(images, settings, [settings.quality] * len(images))
        latents = self._quantised(headers, self._analysed(images), self.tables.code)
        pictures, factors = self._encode(images, headers[0], settings.fidelity, latents, on_tile)
        return [
            Encoded(coding.pack(header, streams, levels), picture, levels)
            for header, streams, picture, levels in zip(headers, latents.kept(), pictures, factors, strict=True)
        ]

    @torch.inference_mode()
    def encode_batch(
        self, images: Sequence[Picture], settings: Settings, qualities: Sequence[float] | None = None,
        latents: Sequence[Tensor] | None = None,
    ) -> list[Pending]:  # fmt: skip
        """Do the part of `compress_batch` that needs the networks; `coding.write` does the rest, anywhere.

        `qualities` are those of each picture, where they differ; `latents` theirs, where they are known already.
        """
        headers = self._headers(images, settings, qualities or [settings.quality] * len(images))
        y_of = self._analysed(images) if latents is None else _known(latents)
        quantised = self._quantised(headers, y_of, list)
        pictures, factors = self._encode(images, headers[0], settings.fidelity, quantised)
        return [Pending(*row) for row in zip(headers, quantised.kept(), pictures, factors, strict=True)]

    def _encode(
        self,
        images: Sequence[Picture],
        header: Header,
        fidelity: float,
        quantised: QuantisedLatents[Any],
        on_tile: OnTile | None = None,
    ) -> tuple[list[Picture], list[list[npt.NDArray[np.uint8]]]]:
        """Find what a decoder will show of each picture, and the factors of its tiles; their latents are quantised."""
        layout = coding.layout_of(header)
        latents = Latents(layout, quantised, layout)
        box = Box(0, 0, header.width, header.height)
        pictures = _blank(box, len(images))
        levels: list[list[npt.NDArray[np.uint8]]] = []
        for tile in _in_turn(list(layout), on_tile):
            y_hat_BMhw = latents.window(tile)
            x_0_BCHW = d_BCHW = self.networks.privileged(y_hat_BMhw, quantised.g_BM11)
            if header.steps:
                factors = FittedFactors(self._core(images, tile), d_BCHW, tile, header, self._criterion(fidelity))
                times = diffusion.sampling_times(header.steps, self.config.diffusion.start)
                x_0_BCHW = trajectory.run(self.networks, y_hat_BMhw, d_BCHW, tile, times, factors)
                levels.append(factors.levels())
            else:
                levels.append([_no_factors(tile)] * len(images))
            _paste(pictures, x_0_BCHW, layout, tile, box)
        return pictures, list(map(list, zip(*levels, strict=True)))

    def _criterion(self, fidelity: float) -> Criterion:
        """Say what factors are chosen by."""
        least_squares = self.config.diffusion.criterion == SQUARED_ERROR
        return LEAST_SQUARES if least_squares else Criterion(fidelity, self._perceptual)

    @torch.inference_mode()
    def decompress_batch(
        self,
        files: Sequence[bytes],
        decoding: Decoding = "corrected",
        max_pixels: int = bitstream.MAX_PIXELS,
        on_tile: OnTile | None = None,
        box: tuple[int, int, int, int] | None = None,
    ) -> list[Picture]:
        """Decompress files that agree in size, steps, grid and tiles to pictures, as `decompress` does one."""
        parsed = self._parsed(files, max_pixels)
        header = parsed[0].header
        if decoding == "uncorrected" and not header.steps:
            raise UsageError("the file has no steps, so there is no uncorrected picture of it")
        shown = Box(*box) if box is not None else Box(0, 0, header.width, header.height)
        if not shown.lies_in(header.width, header.height):
            raise UsageError(
                f"box {','.join(map(str, shown))} is no part of a picture of {header.width}x{header.height}"
            )
        layout = coding.layout_of(header)
        tiles = layout.showing(shown)
        read = ReadLatents(self.networks, self.tables, parsed)
        latents = Latents(layout, read, tiles)
        pictures = _blank(shown, len(files))
        start = self.config.diffusion.start if decoding == "corrected" else T_MAX
        times = diffusion.sampling_times(header.steps, start)
        for tile in _in_turn(tiles, on_tile):
            y_hat_BMhw = latents.window(tile)
            x_0_BCHW = d_BCHW = self.networks.privileged(y_hat_BMhw, read.g_BM11)
            if header.steps and decoding != "privileged":
                factors = ReadFactors(parsed, tile, self.device) if decoding == "corrected" else None
                x_0_BCHW = trajectory.run(self.networks, y_hat_BMhw, d_BCHW, tile, times, factors)
            _paste(pictures, x_0_BCHW, layout, tile, shown)
        return pictures

    @torch.inference_mode()
    def decode_latents(self, files: Sequence[bytes], max_pixels: int = bitstream.MAX_PIXELS) -> list[Tensor]:
        """Read the latents of files that agree as those of `decompress_batch` do; no network runs but the entropy
        model's.

        Returns:
            Of each file y_hat / g_q, as D takes it, float32 [M, h, w]; h and w are the sides over 16, rounded up.

        Raises `BitstreamError` as `decompress` does.
        """
        parsed = self._parsed(files, max_pixels)
        layout, read = coding.layout_of(parsed[0].header), ReadLatents(self.networks, self.tables, parsed)
        rows = [torch.cat([read(tile) for tile in row], dim=3) for row in layout.rows()]
        height, width = (-(-side // LATENT_STRIDE) for side in (layout.height, layout.width))
        return list(torch.cat(rows, dim=2)[:, :, :height, :width])

    @torch.inference_mode()
    def latents(self, images: Sequence[Picture], settings: Settings) -> list[Tensor]:
        """Analyse pictures of one size: each tile's y_BMhw before the gain, for `preview` and `encode_batch`."""
        layout = coding.layout_of(self._headers(images, settings, [settings.quality])[0])
        return list(map(self._analysed(images), layout))

    @torch.inference_mode()
    def preview(
        self, images: Sequence[Picture], latents: Sequence[Tensor], settings: Settings, qualities: Sequence[float]
    ) -> list[Preview]:
        """Find what each picture would become at its quality, by rANS and one pass of D: a small part of an encode."""
        headers = self._headers(images, settings, qualities)
        layout = coding.layout_of(headers[0])
        quantised = self._quantised(headers, _known(latents), self.tables.code)
        windows = Latents(layout, quantised, layout)
        squared_B = torch.zeros(len(images), dtype=torch.float64, device=self.device)
        for tile in layout:
            rows, columns = tile.core_in_window
            d_BCHW = self.networks.privileged(windows.window(tile), quantised.g_BM11)[:, :, rows, columns]
            squared_B += (d_BCHW - self._core(images, tile)).square().sum(dim=(1, 2, 3), dtype=torch.float64)
        squares = (squared_B * 127.5**2 / images[0].size).tolist()
        return [
            Preview(len(bitstream.pack(header, [Streams(b"", s.z, s.y) for s in tiles])), mse)
            for header, tiles, mse in zip(headers, quantised.kept(), squares, strict=True)
        ]

    def latents_of(self, x_BCHW: Tensor, q_B: Tensor) -> tuple[Tensor, Tensor]:
        """Compute y_hat / g_q as a decoder would have it, and g_q, for pictures in [-1, 1] whose sides are multiples of
        64."""
        with self.networks.autocast():
            y_BMhw, g_BM11 = self.model.latent(x_BCHW, q_B)
        with torch.autocast(self.device.type, enabled=False):
            z_BNuv = self.networks.hyper_analysis(y_BMhw)
        y_hat_BMhw = self.tables.y_hat_of(y_BMhw, z_BNuv, q_B * QUALITY_PARTS).to(self.device)
        return y_hat_BMhw / g_BM11, g_BM11

    def _parsed(self, files: Sequence[bytes], max_pixels: int) -> list[Bitstream]:
        """Read files that are to be decoded together, of the version that this codec writes."""
        parsed = coding.unpack_batch(files, self.fingerprint, max_pixels)
        version = parsed[0].header.version
        if version != self.config.file_version:
            raise BitstreamError(f"the file is of version {version}, which this codec does not write")
        return parsed

    def _headers(self, images: Sequence[Picture], settings: Settings, qualities: Sequence[float]) -> list[Header]:
        """Make the header of each picture's file."""
        pixels.check(images)
        self.config.check(settings)
        height, width = images[0].shape[:2]
        config = self.config.diffusion
        steps = config.steps if settings.steps is None else settings.steps
        grid, bits, planes = (config.grid, config.factor_bits, config.planes) if steps else (0, 0, 0)
        side, version = settings.tile_for(height, width), self.config.file_version
        return [
            Header(self.fingerprint, width, height, quality, steps, grid, bits, side, planes, version)
            for quality in qualities
        ]

    def _analysed(self, images: Sequence[Picture]) -> Callable[[Tile], Tensor]:
        """Make the function that gives y_BMhw of a tile's padded core, before the gain."""

        def y_of(tile: Tile) -> Tensor:
            y_BMhw = self.networks.analysis(pixels.to_tensor(images, tile.window, self.device))
            rows, columns = tile.latent_in_window
            return y_BMhw[:, :, rows, columns].float()

        return y_of

    def _quantised(
        self, headers: Sequence[Header], y_of: Callable[[Tile], Tensor], keep: Callable[[list[Symbols]], list[T]]
    ) -> QuantisedLatents[T]:
        return QuantisedLatents(self.networks, self.tables, headers, y_of, keep)

    def _core(self, images: Sequence[Picture], tile: Tile) -> Tensor:
        """Cut a tile's core out of each picture."""
        return pixels.to_tensor(images, tile.core, self.device)


def _known(latents: Sequence[Tensor]) -> Callable[[Tile], Tensor]:
    return lambda tile: latents[tile.index]


def _in_turn(tiles: Sequence[Tile], on_tile: OnTile | None) -> Iterator[Tile]:
    """Yield the tiles in their order; after each, `on_tile` is told and memory is given back."""
    for done, tile in enumerate(tiles, 1):
        yield tile
        if on_tile:
            on_tile(done, len(tiles))
        if len(tiles) > 1:
            heap.give_back_freed_memory()


def _no_factors(tile: Tile) -> npt.NDArray[np.uint8]:
    """Give the factors of a tile in a file without steps."""
    return np.empty((0, 0, tile.grid.rows, tile.grid.columns), np.uint8)


def _blank(box: Box, batch: int) -> list[Picture]:
    return [np.zeros((box.height, box.width, 3), np.uint8) for _ in range(batch)]


def _paste(pictures: list[Picture], x_BCHW: Tensor, layout: Layout, tile: Tile, box: Box) -> None:
    """Lay what a tile's window, in [-1, 1], has of a box over each picture of the box."""
    for picture, window_HWC in zip(pictures, pixels.to_grey_levels(x_BCHW), strict=True):
        layout.paste(picture, window_HWC, tile, box)
