"""What `corrdiff` can be told about evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from corrdiff.config import DEFAULT_FIDELITY, DEFAULT_QUALITY, Settings
from corrdiff.errors import UsageError
from pipelines.options import Device, check_positive, may_change

AnchorName = Literal["jpeg", "jpeg2000", "webp", "avif", "jxl"]
ANCHOR_NAMES: tuple[AnchorName, ...] = get_args(AnchorName)


@dataclass(frozen=True)
class EvaluateConfig:
    """What an evaluation measures."""

    qualities: tuple[float, ...] = (0, 1, 2, 3, 5, 7)
    """Qualities of the codecs, in steps of 1/16."""
    fidelities: tuple[float, ...] = (1.0, 0.5, 0.0)
    """Fidelities at each quality."""
    steps: tuple[int, ...] = (2, 4, 16)
    """Numbers of steps other than the codec's own, at the middle quality and fidelity; 0 is D's picture alone."""
    anchors: tuple[AnchorName, ...] = ANCHOR_NAMES
    """Codecs that people know, to stand beside."""
    reference: AnchorName = may_change("jpeg")
    """The anchor against which BD-rates are."""
    limit: int | None = None
    """Only so many of the pictures, the first ones."""
    show: int = 4
    """Pictures in the report to look at, spread over all."""
    workers: int | None = may_change(None)
    """Most workers at a time; where it is not given, as many as the cluster has GPUs or CPUs."""
    device: Device = may_change("auto")
    """GPUs where the cluster has them, unless told."""
    precision: Literal["fp32", "bf16"] | None = None
    """Where it is not given, bf16 on GPUs and on CPUs that compute in it."""
    max_pixels: int = may_change(1 << 26)
    """Larger pictures are failures."""
    lpips_weights: str | None = may_change(None)
    """File with torchvision's AlexNet weights; looked for under TORCH_HOME where it is not given."""
    column: str | None = None
    """Of Parquet tables: the column with the pictures' bytes, or with their paths or URIs."""

    def __post_init__(self) -> None:
        self.points()  # checks its ranges
        for field in ("qualities", "fidelities", "steps", "anchors"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise UsageError(f"--{field} must be different values, not {' '.join(map(str, values))}")
        for field in ("qualities", "fidelities"):
            if not getattr(self, field):
                raise UsageError(f"--{field} must have a value at least")
        if self.reference not in self.anchors and self.anchors:
            raise UsageError(f"--reference {self.reference} is not among --anchors {' '.join(self.anchors)}")
        check_positive(self, "limit", "workers", "max_pixels")
        if self.show < 0:
            raise UsageError(f"--show must not be negative, not {self.show}")

    def points(self) -> list[Settings]:
        """What each codec is asked for."""
        middle = self.qualities[len(self.qualities) // 2] if self.qualities else DEFAULT_QUALITY
        grid = [Settings(quality, fidelity) for quality in self.qualities for fidelity in self.fidelities]
        return grid + [Settings(middle, DEFAULT_FIDELITY, steps) for steps in self.steps]

    def decodes_both(self, settings: Settings) -> bool:
        """Whether a file is decoded by D alone and without the correction too: one of each quality."""
        return settings.steps is None and settings.fidelity == self.fidelities[0]
