"""A linear transform with overlapping bases, where a codec's transforms start.

A block of 16 x 16 pixels is described by functions of 32 x 32, which overlap their neighbours' by half: a lapped
orthogonal transform (Malvar and Staelin, "The LOT", 1989). All of them are orthonormal, so the synthesis is the
analysis' transpose, an error in a coefficient is as large in the picture, and there are no blocks to be seen. They are
products of 16 functions for rows, 16 for columns and three mixtures of the colours; of these 768 the M of the largest
variance are taken, in that order: of the variance in the training pictures (`basis`), and before there are any, of that
in pictures of a simple kind.

Shapes: x_BCHW picture in [-1, 1]; y_BMhw coefficients at 1/16.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrdiff.config import LAP, LATENT_STRIDE
from corrdiff.networks.layers import laid_out, pixel_shuffle, pixel_unshuffle

CORRELATION = 0.95
"""Of neighbouring pixels, as of photographs: what the functions are made for."""

COLOUR_VARIANCES = (1.0, 0.08, 0.02)
"""Of brightness, of red against blue, of both against green, about as in photographs."""


class LappedAnalysis(nn.Module):
    """x_BCHW -> y_BMhw: beyond its border a picture goes on as its mirror image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_usual_basis(channels).clone())
        """Over pixels that are unshuffled by 16, of which a function covers 2 x 2: [M, 768, 2, 2]."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        with torch.autocast(x_BCHW.device.type, enabled=False):  # large coefficients have more digits than bf16
            return F.conv2d(pixel_unshuffle(_mirrored(x_BCHW.float()), LATENT_STRIDE), self.weight.float())


class LappedSynthesis(nn.Module):
    """y_BMhw -> x_BCHW, not bounded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_usual_basis(channels).clone())

    def forward(self, y_BMhw: Tensor) -> Tensor:
        weight, y_BMhw = self.weight.float(), y_BMhw.float()
        rows, columns = _symmetry(weight)
        y_BMhw = torch.cat([y_BMhw[:, :, :1] * rows, y_BMhw, y_BMhw[:, :, -1:] * rows], 2)
        y_BMhw = torch.cat([y_BMhw[..., :1] * columns, y_BMhw, y_BMhw[..., -1:] * columns], 3)
        with torch.autocast(y_BMhw.device.type, enabled=False):
            x_BCHW = pixel_shuffle(F.conv_transpose2d(laid_out(y_BMhw), weight), LATENT_STRIDE)
        border = LATENT_STRIDE + LAP
        return x_BCHW[:, :, border:-border, border:-border]


def _mirrored(x_BCHW: Tensor) -> Tensor:
    """Add the mirror image of LAP pixels at each side."""
    n = LAP
    x_BCHW = torch.cat([x_BCHW[:, :, :n].flip(2), x_BCHW, x_BCHW[:, :, -n:].flip(2)], 2)
    return torch.cat([x_BCHW[..., :n].flip(3), x_BCHW, x_BCHW[..., -n:].flip(3)], 3)


def _symmetry(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Say of each function whether it is its own mirror image (1) or the negative of it (-1), [M, 1, 1] each way.

    A block beyond the border has the coefficients of the one within, by these signs.
    """
    f = functions(weight.detach())
    rows, columns = (torch.where((f * f.flip(side)).sum((1, 2, 3)) < 0, -1.0, 1.0) for side in (2, 3))
    return rows[:, None, None], columns[:, None, None]


def functions(weight: Tensor) -> Tensor:
    """Give a layer's weights as pictures, [M, 3, 32, 32]."""
    n = LATENT_STRIDE
    w = weight.reshape(-1, 3, n, n, 2, 2).permute(0, 1, 4, 2, 5, 3)
    return w.reshape(-1, 3, 2 * n, 2 * n)


def weights(functions_M3HW: Tensor) -> Tensor:
    """Give pictures [M, 3, 32, 32] as a layer's weights."""
    n = LATENT_STRIDE
    f = functions_M3HW.reshape(-1, 3, 2, n, 2, n).permute(0, 1, 3, 5, 2, 4)
    return f.reshape(-1, 3 * n * n, 2, 2).contiguous()


def basis(x_BCHW: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Find the M functions of the largest variance: (layer weights, standard deviations [M]).

    Args:
        x_BCHW: training pictures in [-1, 1], whose sides are multiples of 16.
        channels: M, at most 768.
    """
    pixels = x_BCHW.transpose(0, 1).flatten(1).double()
    every = _products(torch.linalg.eigh(pixels @ pixels.T / pixels.shape[1]).eigenvectors.T)
    layer = LappedAnalysis(len(every)).to(x_BCHW.device)
    with torch.no_grad():
        layer.weight.copy_(weights(every))
        y_MK = torch.cat([layer(x).transpose(0, 1).flatten(1) for x in torch.split(x_BCHW, 64)], 1)
    deviation, order = y_MK.std(1).sort(descending=True)
    return layer.weight.data[order[:channels]].clone(), deviation[:channels]


@functools.lru_cache(maxsize=4)
def _usual_basis(channels: int) -> Tensor:
    """The M functions of the largest variance where neighbours are alike by CORRELATION, brightness above all."""
    with torch.device("cpu"):
        brightness = torch.full((3,), 3**-0.5)
        others = torch.tensor([[1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]) / torch.tensor([[2.0], [6.0]]).sqrt()
        one = torch.from_numpy(_lapped_functions(LATENT_STRIDE)[1])
        variance = torch.einsum("k,i,j->kij", torch.tensor(COLOUR_VARIANCES, dtype=torch.float64), one, one)
        order = variance.flatten().argsort(descending=True)[:channels]
        return weights(_products(torch.cat([brightness[None], others]))[order])


def _products(colours: Tensor) -> Tensor:
    """Multiply three mixtures of the colours, [3, 3], with the functions for rows and columns: [768, 3, 32, 32]."""
    one = torch.from_numpy(_lapped_functions(LATENT_STRIDE)[0]).float()
    every = torch.einsum("kc,is,jt->kijcst", colours.cpu().float(), one, one)
    return every.reshape(-1, 3, 2 * LATENT_STRIDE, 2 * LATENT_STRIDE)


def _lapped_functions(n: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The n functions of 2n values: of the fast lapped transform, turned to the principal components among those of a
    kind, even or odd; [n, 2n], orthonormal, and so against themselves shifted by n. And their variances [n], falling.
    """
    k = np.arange(n)
    dct = np.sqrt(2 / n) * np.cos(np.pi * (2 * k + 1) * k[:, None] / (2 * n))
    dct[0] /= np.sqrt(2)
    half = dct[::2] - dct[1::2]
    covariance = CORRELATION ** np.abs(np.subtract.outer(np.arange(2 * n), np.arange(2 * n)))
    found = []
    for mirrored in (half[:, ::-1], -half[:, ::-1]):
        some = np.block([half, mirrored]) / 2
        variance, turn = np.linalg.eigh(some @ covariance @ some.T)
        found += list(zip(variance, turn.T @ some, strict=True))
    found.sort(key=lambda pair: -pair[0])
    return np.array([function for _, function in found]), np.array([variance for variance, _ in found])
