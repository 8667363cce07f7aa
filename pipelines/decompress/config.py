"""The options of `corrdiff decompress`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipelines.options import Device, check_positive, may_change


@dataclass(frozen=True)
class DecompressConfig:
    """How to make pictures of a compressed dataset."""

    format: Literal["png", "webp", "jpeg"] = "png"
    """PNG and WebP keep every pixel; JPEG is of quality 95."""
    shards: bool = False
    """Write WebDataset shards instead of a file a picture."""
    decoding: Literal["corrected", "uncorrected", "privileged"] = "corrected"
    """corrected is the picture; privileged is the end-to-end decoder's alone, which is fast; uncorrected the score
    network's alone."""
    workers: int | None = may_change(None)
    """Most workers at a time; where it is not given, as many as the cluster has GPUs or CPUs."""
    device: Device = may_change("auto")
    """GPUs where the cluster has them, unless told."""
    precision: Literal["fp32", "bf16"] | None = None
    """Where it is not given, bf16 on GPUs and on CPUs that compute in it."""
    max_pixels: int = may_change(1 << 28)
    """Larger pictures end the job."""
    overwrite: bool = may_change(False)
    """Write over files that are there and that this job has not written."""

    def __post_init__(self) -> None:
        check_positive(self, "workers", "max_pixels")
