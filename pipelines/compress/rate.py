"""With a target: the rule by which each picture finds its quality, from what it would become at some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from corrdiff import correction, rate_control
from corrdiff.codec import CorrDiffCodec, Preview, Settings
from corrdiff.picture import Picture
from corrdiff.rate_control import Choice, Point


@dataclass(frozen=True)
class Rate:
    """The rule, and what it was found from."""

    slope: float
    """With `start`, the `Choice` by which a picture finds its quality."""
    start: int
    bytes_a_cell: float
    """Of a file's factors, for each cell of their grid."""
    psnr_offset_db: list[float]
    """Of the picture against D's, at each level."""
    sampled: int
    bpp: float
    """Expected of all pictures, as is `psnr_db`."""
    psnr_db: float
    parts: int = 1
    """Also of the `Choice`: qualities between two levels, and one of the levels."""

    @property
    def choice(self) -> Choice:
        """What the rule comes to where a picture's qualities are compared."""
        return Choice(self.slope, self.start, self.parts)

    def point(self, preview: Preview, level: int, pixels: int, cells: int) -> Point:
        """What is expected of the file and the picture."""
        point = Point.of(preview.bytes + self.bytes_a_cell * cells, pixels, preview.mse)
        return point._replace(psnr_db=point.psnr_db + self.psnr_offset_db[level])


def qualities(
    codec: CorrDiffCodec, images: Sequence[Picture], latents: Sequence[Tensor], settings: Settings, rate: Rate
) -> list[float]:
    """The qualities that pictures of one size take."""
    pixels, cells = pixels_and_cells(images[0], codec)
    known: list[dict[int, Point]] = [{} for _ in images]
    while wanted := {i: q for i, k in enumerate(known) if (q := rate_control.next_level(k, rate.choice)) is not None}:
        still = list(wanted)
        chosen = [y[still] for y in latents]
        previews = codec.preview([images[i] for i in still], chosen, settings, list(wanted.values()))
        for (i, level), preview in zip(wanted.items(), previews, strict=True):
            known[i][level] = rate.point(preview, level, pixels, cells)
    return [rate_control.best_quality(k, rate.choice) for k in known]


def pixels_and_cells(image: Picture, codec: CorrDiffCodec) -> tuple[int, int]:
    """How many pixels a picture has, and how many cells its grid of factors."""
    height, width = image.shape[:2]
    grid = correction.Grid(height, width, codec.config.diffusion.grid)
    return height * width, grid.rows * grid.columns
