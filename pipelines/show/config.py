"""The options of `corrdiff show`."""

from __future__ import annotations

from dataclasses import dataclass

from corrdiff.errors import UsageError
from pipelines.options import check_positive


@dataclass(frozen=True)
class ShowConfig:
    """Which pictures of a compressed dataset to look at."""

    keys: tuple[str, ...] = ()
    """These pictures (keys as in the table)."""
    worst: str | None = None
    """Those that are worst by a column: psnr_db, ms_ssim, lpips, texture_error, or of the highest bpp."""
    random: int | None = None
    """So many, drawn by --seed; 16 where nothing else says which."""
    failed: bool = False
    """What failed, and why: there is nothing to draw of it."""
    count: int = 16
    """The most pictures of --worst, and rows of --failed."""
    seed: int = 0
    """Another one draws other pictures."""
    max_pixels: int = 1 << 28
    """Larger pictures are not drawn."""

    def __post_init__(self) -> None:
        check_positive(self, "random", "count", "max_pixels")
        if sum((bool(self.keys), self.worst is not None, self.random is not None, self.failed)) > 1:
            raise UsageError("--keys, --worst, --random and --failed: give one of them")
