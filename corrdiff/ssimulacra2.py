"""SSIMULACRA2 (version 2.1 of April 2023), as the tool of that name in libjxl computes it.

It is written out here because the package `ssimulacra2` is not that tool: it blurs with other weights, and at two of a
picture's borders it sees a mirror where the tool sees zeros. Its values are points lower (docs/benchmarks.md), they
change when a picture is turned, and it takes half a GiB a megapixel. The rest of it is what the test compares with.

Shapes: x_CHW a picture in linear RGB or in the opsin colours X, Y and B-Y; N blurs of it, [N, C, H, W].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from corrdiff.picture import Picture

MIN_SIDE = 113
"""The tool halves a picture only while its sides have eight pixels; of a smaller one scales and their weights lack."""

SCALES = 6
STRIP = 64
"""Rows that are looked at together: the memory is that of both pictures in linear light and of a few strips."""

# The opsin colours: how much of red, green and blue each kind of cone sees, and what it sees in the dark.
CONES = torch.tensor([
    [0.30, 0.622, 0.078],
    [0.23, 0.692, 0.078],
    [0.24342268924547819, 0.20476744424496821, 0.5518098665095537],
], dtype=torch.float64)  # fmt: skip
DARK = 0.0037930732552754493

TAPS = (0.2646211054881985, 0.2129285920104222, 0.1093353727774603, 0.0360111146583644, 0.009414367809653747)
"""The tool's recursive filter for sigma 1.5 (Charalampidis 2016), as what it makes of one pixel: the middle, then to
either side."""

STABLE = 0.0009
"""Keeps the structural similarity of flat parts finite."""

# Of each channel and scale: SSIM, artefacts and lost detail by their means, then by their 4-norms.
WEIGHTS = torch.tensor([
    0.0, 0.0007376606707406586, 0.0, 0.0, 0.0007793481682867309, 0.0,
    0.0, 0.0004371155730107379, 0.0, 1.1041726426657346, 0.00066284834129271, 0.00015231632783718752,
    0.0, 0.0016406437456599754, 0.0, 1.8422455520539298, 11.441172603757666, 0.0,
    0.0007989109436015163, 0.000176816438078653, 0.0, 1.8787594979546387, 10.94906990605142, 0.0,
    0.0007289346991508072, 0.9677937080626833, 0.0,
    0.00014003424285435884, 0.9981766977854967, 0.00031949755934435053,
    0.0004550992113792063, 0.0, 0.0, 0.0013648766163243398, 0.0, 0.0,

    0.0, 0.0, 0.0, 7.466890328078848, 0.0, 17.445833984131262,
    0.0006235601634041466, 0.0, 0.0, 6.683678146179332, 0.00037724407979611296, 1.027889937768264,
    225.20515300849274, 0.0, 0.0, 19.213238186143016, 0.0011401524586618361, 0.001237755635509985,
    176.39317598450694, 0.0, 0.0, 24.43300999870476, 0.28520802612117757, 0.0004485436923833408,
    0.0, 0.0, 0.0, 34.77906344483772, 44.835625328877896, 0.0,
    0.0, 0.0, 0.0, 0.0, 0.0, 0.0,

    0.0, 0.0008680556573291698, 0.0, 0.0, 0.0, 0.0,
    0.0, 0.0005313191874358747, 0.0, 0.00016533814161379112, 0.0, 0.0,
    0.0, 0.0, 0.0, 0.0004179171803251336, 0.0017290828234722833, 0.0,
    0.0020827005846636437, 0.0, 0.0, 8.826982764996862, 23.19243343998926, 0.0,
    95.1080498811086, 0.9863978034400682, 0.9834382792465353,
    0.0012286405048278493, 171.2667255897307, 0.9807858872435379,
    0.0, 0.0, 0.0, 0.0005130064588990679, 0.0, 0.00010854057858411537,
], dtype=torch.float64)  # fmt: skip


def score(original: Picture, picture: Picture) -> float | None:
    """Compute SSIMULACRA2: 100 where pictures are equal, below 0 where little is left, None under MIN_SIDE pixels."""
    if min(original.shape[:2]) < MIN_SIDE:
        return None
    x_CHW, y_CHW = _linear(original), _linear(picture)
    scales = [_errors(x_CHW, y_CHW)]
    for _ in range(SCALES - 1):
        x_CHW, y_CHW = _half(x_CHW), _half(y_CHW)
        scales.append(_errors(x_CHW, y_CHW))
    error = float(WEIGHTS @ torch.stack(scales, 1).flatten()) * 0.9562382616834844
    error = 2.326765642916932 * error - 0.020884521182843837 * error**2 + 6.248496625763138e-05 * error**3
    return 100 - 10 * error**0.6276336467831387 if error > 0 else 100.0


def _linear(picture: Picture) -> Tensor:
    """Undo the sRGB curve."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    light = torch.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4).float()
    return torch.stack([light[torch.from_numpy(picture[..., c].astype("int32"))] for c in range(3)])


def _half(x_CHW: Tensor) -> Tensor:
    """Average squares of four pixels; an odd last row or column counts twice."""
    odd = (0, x_CHW.shape[2] % 2, 0, x_CHW.shape[1] % 2)
    return F.avg_pool2d(F.pad(x_CHW[None], odd, mode="replicate")[0], 2)


def _errors(x_CHW: Tensor, y_CHW: Tensor) -> Tensor:
    """Compute means and 4-norms of the three maps of errors at one scale, [channel, norm, map]."""
    height, width = x_CHW.shape[1:]
    reach = len(TAPS) - 1
    total = torch.zeros(3, 2, 3, dtype=torch.float64)
    for top in range(0, height, STRIP):
        begin, end = max(0, top - reach), min(height, top + STRIP + reach)
        inside = slice(top - begin, min(height, top + STRIP) - begin)
        a, b = (_opsin(linear_CHW[:, begin:end]) for linear_CHW in (x_CHW, y_CHW))
        blurred = _blur(torch.stack([a, b, a * a, b * b, a * b]))
        for i, error_CHW in enumerate(_maps(a[:, inside], b[:, inside], blurred[:, :, inside])):
            total[:, 0, i] += error_CHW.sum((1, 2))
            total[:, 1, i] += error_CHW.square().square().sum((1, 2))
    total /= height * width
    total[:, 1] = total[:, 1] ** 0.25
    return total


def _maps(a: Tensor, b: Tensor, blurred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute how unlike the structure is, and where there are edges too many and too few."""
    mean_a, mean_b, aa, bb, ab = blurred
    likeness = (1 - (mean_a - mean_b) ** 2) * (2 * (ab - mean_a * mean_b) + STABLE)
    unlike = 1 - likeness / ((aa - mean_a * mean_a) + (bb - mean_b * mean_b) + STABLE)
    edges = (1 + (b - mean_b).abs()) / (1 + (a - mean_a).abs()) - 1
    return unlike.clamp(min=0), edges.clamp(min=0), (-edges).clamp(min=0)


def _opsin(linear_CHW: Tensor) -> Tensor:
    """Convert linear RGB to X, Y and B-Y, each of about 0 to 1."""
    seen = torch.tensordot(CONES, linear_CHW.double(), 1).add_(DARK).clamp_(min=0)
    long, medium, short = seen.pow_(1 / 3).sub_(DARK ** (1 / 3))
    y = (long + medium) / 2
    return torch.stack([7 * (long - medium) + 0.42, y + 0.01, short - y + 0.55])


def _blur(x_NCHW: Tensor) -> Tensor:
    """Blur over rows and columns, with zeros outside."""
    for axis in (2, 3):
        size = x_NCHW.shape[axis]
        out = x_NCHW * TAPS[0]
        for shift, weight in enumerate(TAPS[1:], 1):
            rest = max(0, size - shift)
            out.narrow(axis, 0, rest).add_(x_NCHW.narrow(axis, size - rest, rest), alpha=weight)
            out.narrow(axis, size - rest, rest).add_(x_NCHW.narrow(axis, 0, rest), alpha=weight)
        x_NCHW = out
    return x_NCHW
