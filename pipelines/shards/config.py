"""What `corrdiff` can be told about shards."""

from __future__ import annotations

import math
from dataclasses import dataclass

from corrdiff.errors import UsageError


@dataclass(frozen=True)
class ShardConfig:
    """Cut pictures into WebDataset shards of training crops."""

    crop: int = 256
    """Side of a crop in pixels."""
    stride: int | None = None
    """Distance between crops; the crop's side where it is not given. Crops always reach the picture's borders."""
    scales: str = "1"
    """Sizes at which each picture is cut, over its own, with commas between: 1,0.5 cuts it whole and halved. Reduced
    pictures are sharper, and small objects are in them."""
    pictures_per_shard: int = 64
    """Pictures that go into one shard."""
    val_fraction: float = 0.0
    """Share of the pictures that is held out for validation, in shards of its own under OUT/val."""
    min_detail: float = 0.5
    """Flatter crops are left out: mean difference of neighbouring pixels, in levels of 255."""
    seed: int = 0
    """Order of the pictures over the shards, and which are held out."""

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise UsageError(f"--val-fraction must be from 0 to below 1, not {self.val_fraction}")
        if not self.min_detail >= 0:
            raise UsageError(f"--min-detail must not be negative, not {self.min_detail}")
        if not 16 <= self.crop <= 4096:
            raise UsageError(f"--crop must be from 16 to 4096 pixels, not {self.crop}")
        if self.stride is not None and not 1 <= self.stride <= self.crop:
            raise UsageError(f"--stride must be from 1 to the crop's side, not {self.stride}")
        if not all(0 < scale <= 1 for scale in self.each_scale):
            raise UsageError(f"--scales must be numbers over 0 and up to 1 with commas between, not {self.scales}")
        if self.pictures_per_shard < 1:
            raise UsageError("--pictures-per-shard must be at least 1")

    @property
    def each_scale(self) -> tuple[float, ...]:
        """Give the scales as numbers; one that is none is not a number over 0 either."""
        return tuple(_number(scale) for scale in self.scales.split(","))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
