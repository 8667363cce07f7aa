"""All randomness of a training sample, as a function of (seed, epoch, key) alone.

Shapes: x_BCHW crops in [-1, 1]; per-sample values [B].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from corrdiff import diffusion
from corrdiff.config import HYPER_STRIDE, LATENT_STRIDE, QUALITIES, TransformConfig
from pipelines.train.batch import Batch

ALIGNED_BYTES = 256
"""Columns begin at multiples of this, as tensors of their own would on a GPU."""


class Sample(NamedTuple):
    """A batch as the losses take it."""

    x_BCHW: Tensor
    w_B: Tensor
    q_B: Tensor
    """Quality levels."""
    t_B: Tensor
    """Diffusion times (`diffusion.training_time`)."""
    eps_BCHW: Tensor
    u_y_BMhw: Tensor
    """Quantisation noise of the latent, uniform in [-0.5, 0.5)."""
    u_z_BNuv: Tensor


Noise = Literal["eps_BCHW", "u_y_BMhw", "u_z_BNuv"]
NOISE: tuple[Noise, ...] = ("eps_BCHW", "u_y_BMhw", "u_z_BNuv")
"""What a loss may do without, in the order in which it is drawn."""


class Packed(NamedTuple):
    """A drawn batch in one run of bytes, which goes to a device in one copy."""

    data: Tensor
    columns: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    """Name -> type and shape, in their order in the bytes: the crops as they are stored, "x_BHWC", and the other fields
    of a `Sample`."""
    absent: dict[str, tuple[int, ...]]
    """Shapes of the noise that is not wanted."""

    def views(self) -> dict[str, Tensor]:
        """Give the columns, in the memory of `data`."""
        found, at = {}, 0
        for name, (dtype, shape) in self.columns.items():
            size = math.prod(shape) * dtype.itemsize
            found[name] = self.data[at : at + size].view(dtype).view(shape)
            at += _aligned(size)
        return found

    def sample(self) -> Sample:
        """Give the batch as the losses take it, with zeros that take no memory for what is absent."""
        columns = self.views()
        x_BCHW = (columns.pop("x_BHWC").permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(
            memory_format=torch.channels_last
        )
        zero = torch.zeros((), device=self.data.device)
        return Sample(x_BCHW, **columns, **{name: zero.expand(shape) for name, shape in self.absent.items()})


def draw(
    batch: Batch, seed: int, crop: int, config: TransformConfig, device: torch.device, noise: Iterable[Noise] = NOISE
) -> Sample:
    """Cut, flip and noise each crop by its own generator, which neither the worker nor the batch size can move."""
    packed = pack(batch, seed, crop, config, noise)
    return packed._replace(data=packed.data.to(device)).sample()


def pack(
    batch: Batch, seed: int, crop: int, config: TransformConfig, noise: Iterable[Noise] = NOISE,
    threads: ThreadPoolExecutor | None = None,
) -> Packed:  # fmt: skip
    """Draw a batch in the memory of the host, pinned where there are `threads`, which then draw crops side by side.

    The values of a crop do not depend on which `noise` is wanted.
    """
    packed = _empty(len(batch.keys), crop, config, frozenset(noise), pinned=threads is not None)
    columns = packed.views()
    columns["w_B"].copy_(torch.from_numpy(batch.weight_B))

    def draw_row(i: int) -> None:
        _draw_one(
            batch.pixels_BHWC[i], generator_of(seed, batch.epoch, batch.keys[i]),
            {name: column[i] for name, column in columns.items()}, packed.absent,
        )  # fmt: skip

    for _ in (map if threads is None else threads.map)(draw_row, range(len(batch.keys))):
        pass
    columns["t_B"].copy_(diffusion.training_time(columns["t_B"]))
    return packed


def _empty(rows: int, crop: int, config: TransformConfig, noise: frozenset[Noise], pinned: bool) -> Packed:
    h, u = crop // LATENT_STRIDE, crop // HYPER_STRIDE
    shapes: dict[Noise, tuple[int, ...]] = {
        "eps_BCHW": (rows, 3, crop, crop), "u_y_BMhw": (rows, config.latent_channels, h, h),
        "u_z_BNuv": (rows, config.hyper_channels, u, u),
    }  # fmt: skip
    columns: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "x_BHWC": (torch.uint8, (rows, crop, crop, 3)), "w_B": (torch.float32, (rows,)),
        "q_B": (torch.int64, (rows,)), "t_B": (torch.float32, (rows,)),
        **{name: (torch.float32, shapes[name]) for name in NOISE if name in noise},
    }  # fmt: skip
    size = sum(_aligned(math.prod(shape) * dtype.itemsize) for dtype, shape in columns.values())
    absent: dict[str, tuple[int, ...]] = {name: shapes[name] for name in NOISE if name not in noise}
    return Packed(torch.empty(size, dtype=torch.uint8, pin_memory=pinned), columns, absent)


def _aligned(size: int) -> int:
    return -(-size // ALIGNED_BYTES) * ALIGNED_BYTES


def generator_of(seed: int, epoch: int, key: str) -> torch.Generator:
    """Give the generator of one crop in one epoch."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=8).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    return generator


def _draw_one(
    pixels_HWC: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    generator: torch.Generator,
    row: dict[str, Tensor],
    absent: dict[str, tuple[int, ...]],
) -> None:
    """Draw a crop into its place in each column; its time is left uniform in [0, 1)."""

    def integer(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    size, crop = pixels_HWC.shape[0], row["x_BHWC"].shape[0]
    top, left, flip = integer(size - crop + 1), integer(size - crop + 1), integer(2)
    window = pixels_HWC[top : top + crop, left : left + crop]
    row["x_BHWC"].numpy()[:] = window[:, ::-1] if flip else window
    row["q_B"].fill_(integer(QUALITIES))
    torch.rand((), generator=generator, out=row["t_B"])
    last = max((NOISE.index(name) for name in NOISE if name in row), default=-1)
    for name in NOISE[: last + 1]:
        # What is absent is drawn too where something comes after it, which would else be drawn from other numbers.
        place = row[name] if name in row else torch.empty(absent[name][1:])
        if name == "eps_BCHW":
            torch.randn(place.shape, generator=generator, out=place)
        else:
            torch.rand(place.shape, generator=generator, out=place).sub_(0.5)


def micro_batches(sample: Sample, size: int) -> list[Sample]:
    """Cut a batch into equal parts for gradient accumulation."""
    count = len(sample.x_BCHW) // size
    columns = [torch.split(tensor, size) for tensor in sample]
    return [Sample(*(column[i] for column in columns)) for i in range(count)]
