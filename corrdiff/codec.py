"""Pictures <-> bytes: the codec as it is used, on networks and tables that do not change any more.

    compress    x -> y, z -> streams -> y_hat -> D, trajectory with fitted factors   -> file
    decompress  file            -> streams -> y_hat -> D, trajectory with read factors -> picture

Both run the same `_trajectory`; they differ in who says the factors.

Shapes: B batch, H W pixels, M latent channels, h w latent positions, S steps, R C rows and columns of factor cells.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff import bitstream, correction, diffusion
from corrdiff.bitstream import BitstreamError, Header, Streams
from corrdiff.config import DEFAULT_FIDELITY, DEFAULT_QUALITY, HYPER_STRIDE, CodecConfig
from corrdiff.config import Settings as Settings
from corrdiff.correction import Grid
from corrdiff.entropy_model import EntropyTables
from corrdiff.errors import UsageError
from corrdiff.model import CorrDiffModel

Picture = npt.NDArray[np.uint8]
"""RGB, [H, W, 3]."""

Precision = Literal["fp32", "bf16"]
Decoding = Literal["corrected", "uncorrected", "privileged"]


class Encoded(NamedTuple):
    """One compressed picture, and what the encoder saw on the way."""

    data: bytes
    """The file."""
    reconstruction: Picture
    """What the decoder will show, from the encoder's replay of it."""
    privileged: Picture
    """D(y_hat)."""
    factors: npt.NDArray[np.uint8]
    """Levels, [S, R, C]."""

    @property
    def bpp(self) -> float:
        """Bits of the whole file for each pixel."""
        height, width = self.reconstruction.shape[:2]
        return 8 * len(self.data) / (height * width)


class CorrDiffCodec:
    """A trained codec on one device."""

    def __init__(
        self,
        model: CorrDiffModel,
        tables: EntropyTables,
        fingerprint: bytes,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
    ) -> None:
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.tables = tables
        self.fingerprint = fingerprint

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

    @torch.inference_mode()
    def compress_batch(self, images: Sequence[Picture], settings: Settings) -> list[Encoded]:
        """Pictures of one size -> files. Raises `UsageError` for arrays that are no such pictures."""
        x_BCHW = self._to_tensor(images)
        height, width = x_BCHW.shape[2:]
        steps = settings.steps or self.config.diffusion.steps
        grid, bits = Grid(height, width, self.config.diffusion.grid), self.config.diffusion.factor_bits
        padded = _pad(x_BCHW)
        with self._autocast():
            y_BMhw, g_BM11 = self.model.latent(padded, self._qualities([settings.quality] * len(images)))
        z_BNuv = self.model.entropy.hyper_analysis(y_BMhw)
        coded = [self.tables.encode(y, z) for y, z in zip(y_BMhw, z_BNuv, strict=True)]
        y_hat_BMhw = torch.stack([c.y_hat_Mhw for c in coded]).to(self.device) / g_BM11
        d_BCHW = self._decode_privileged(y_hat_BMhw)
        target = correction.prepare_target(x_BCHW, d_BCHW[:, :, :height, :width])
        fitted: list[Tensor] = []

        def fit(step: int, xhat0_BCHW: Tensor) -> Tensor:
            cropped = xhat0_BCHW[:, :, :height, :width]
            fitted.append(correction.fit_factors(target, cropped, grid, bits, settings.fidelity))
            return fitted[-1]

        out_BCHW = self._trajectory(y_hat_BMhw, d_BCHW, steps, grid, bits, fit)
        levels_BSRC = torch.stack(fitted, dim=1).to("cpu", torch.uint8).numpy()
        header = Header(self.fingerprint, width, height, settings.quality, steps, self.config.diffusion.grid, bits)
        reconstructions, privileged = _to_pictures(out_BCHW, height, width), _to_pictures(d_BCHW, height, width)
        return [
            Encoded(
                bitstream.pack(header, [Streams(correction.encode_factors(levels, bits), c.z_stream, c.y_stream)]),
                reconstruction,
                d,
                levels,
            )
            for c, levels, reconstruction, d in zip(coded, levels_BSRC, reconstructions, privileged, strict=True)
        ]

    @torch.inference_mode()
    def decompress_batch(
        self, files: Sequence[bytes], decoding: Decoding = "corrected", max_pixels: int = bitstream.MAX_PIXELS
    ) -> list[Picture]:
        """Files that agree in size, steps and grid -> pictures. See `decompress`."""
        if not files:
            raise UsageError("a batch needs at least one file")
        parsed = [bitstream.unpack(data, self.fingerprint, max_pixels) for data in files]
        header = parsed[0].header
        if any(_batch_key(p.header) != _batch_key(header) for p in parsed):
            raise UsageError("the files of a batch must agree in width, height, steps and factor grid")
        y_hat_BMhw = self._latents(parsed)
        d_BCHW = self._decode_privileged(y_hat_BMhw)
        if decoding == "privileged":
            return _to_pictures(d_BCHW, header.height, header.width)
        grid = Grid(header.height, header.width, header.grid)
        levels_BSRC = torch.stack([_read_factors(p, grid) for p in parsed]).to(self.device)
        if decoding == "uncorrected":
            levels_BSRC = torch.zeros_like(levels_BSRC)
        out_BCHW = self._trajectory(
            y_hat_BMhw, d_BCHW, header.steps, grid, header.factor_bits, lambda step, _: levels_BSRC[:, step]
        )
        return _to_pictures(out_BCHW, header.height, header.width)

    def latents_of(self, x_BCHW: Tensor, q_B: Tensor) -> Tensor:
        """y_hat / g_q as a decoder would have it, for pictures in [-1, 1] whose sides are multiples of 64."""
        with self._autocast():
            y_BMhw, g_BM11 = self.model.latent(x_BCHW, q_B)
        with torch.autocast(self.device.type, enabled=False):
            z_hat_BNuv = self.model.entropy.hyper_analysis(y_BMhw).round()
        m_BMhw = torch.stack([self.tables.mean_and_index(z)[0] for z in z_hat_BNuv]).to(self.device)
        y_hat_BMhw: Tensor = ((y_BMhw - m_BMhw).round() + m_BMhw) / g_BM11
        return y_hat_BMhw

    def _latents(self, parsed: Sequence[bitstream.Bitstream]) -> Tensor:
        """y_hat / g_q of files of one size."""
        header = parsed[0].header
        z_shape = (-(-header.height // HYPER_STRIDE), -(-header.width // HYPER_STRIDE))
        try:
            decoded = [self.tables.decode(p.tiles[0].z, p.tiles[0].y, z_shape) for p in parsed]
        except ValueError as error:
            raise BitstreamError(f"the coded latents are not valid: {error}") from None
        g_BM11 = self.model.gain(self._qualities([p.header.quality for p in parsed]))
        y_hat_BMhw: Tensor = torch.stack(decoded).to(self.device) / g_BM11
        return y_hat_BMhw

    def _decode_privileged(self, y_hat_BMhw: Tensor) -> Tensor:
        with self._autocast():
            d_BCHW: Tensor = self.model.decoder(y_hat_BMhw)
        return d_BCHW.float().clamp(-1, 1)

    def _trajectory(
        self,
        y_hat_BMhw: Tensor,
        d_BCHW: Tensor,
        steps: int,
        grid: Grid,
        bits: int,
        levels_of: Callable[[int, Tensor], Tensor],
    ) -> Tensor:
        """The reverse process. `levels_of(step, xhat0_BCHW)` gives the factor levels [B, R, C] of each step."""
        height, width = d_BCHW.shape[2:]
        with self._autocast():
            context = self.model.context(y_hat_BMhw)
        noise = diffusion.format_noise(height, width).to(self.device)
        x_t_BCHW = noise[None].expand(len(d_BCHW), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        times = diffusion.sampling_times(steps)
        for step, (t, t_next) in enumerate(itertools.pairwise(times)):
            with self._autocast():
                xhat0_BCHW = self.model.denoiser(x_t_BCHW, context, torch.full((len(d_BCHW),), t, device=self.device))
            xhat0_BCHW = xhat0_BCHW.float().clamp(-1, 1)
            gamma_BRC = correction.dequantise(levels_of(step, xhat0_BCHW), bits)
            x_0_BCHW = correction.apply(xhat0_BCHW, d_BCHW, gamma_BRC, grid)
            if t_next > 0:
                x_t_BCHW = diffusion.ddim_step(x_t_BCHW, x_0_BCHW, t, t_next)
        return x_0_BCHW

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _qualities(self, qualities: list[int]) -> Tensor:
        return torch.tensor(qualities, device=self.device)

    def _to_tensor(self, images: Sequence[Picture]) -> Tensor:
        if not images:
            raise UsageError("a batch needs at least one picture")
        for image in images:
            if not isinstance(image, np.ndarray):
                raise UsageError(f"expected RGB uint8 pictures [H, W, 3], got {type(image).__name__}")
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
                raise UsageError(f"expected RGB uint8 pictures [H, W, 3], got {image.dtype} {list(image.shape)}")
            if image.shape != images[0].shape:
                raise UsageError("the pictures of a batch must have one size")
        x_BHWC = torch.from_numpy(np.stack(images)).to(self.device)
        return x_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1


def _batch_key(header: Header) -> tuple[int, ...]:
    return header.width, header.height, header.steps, header.grid, header.factor_bits


def _read_factors(parsed: bitstream.Bitstream, grid: Grid) -> Tensor:
    header = parsed.header
    shape = (header.steps, grid.rows, grid.columns)
    try:
        levels = correction.decode_factors(parsed.tiles[0].factors, shape, header.factor_bits)
    except ValueError as error:
        raise BitstreamError(f"the correction factors are not valid: {error}") from None
    return torch.from_numpy(levels)


def _pad(x_BCHW: Tensor) -> Tensor:
    """Repeat the last row and column up to a multiple of 64."""
    height, width = x_BCHW.shape[2:]
    x = F.pad(x_BCHW, (0, -width % HYPER_STRIDE, 0, -height % HYPER_STRIDE), mode="replicate")
    return x.contiguous(memory_format=torch.channels_last)


def _to_pictures(x_BCHW: Tensor, height: int, width: int) -> list[Picture]:
    x = ((x_BCHW[:, :, :height, :width].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return list(x.permute(0, 2, 3, 1).cpu().numpy())
