"""What `corrdiff` can be told about evaluate."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import tyro

from corrdiff.config import DEFAULT_FIDELITY, DEFAULT_QUALITY, Settings
from corrdiff.errors import UsageError
from pipelines.options import Device, check_positive, may_change

AnchorName = Literal["jpeg", "jpeg2000", "webp", "avif", "jxl"]
ANCHOR_NAMES: tuple[AnchorName, ...] = get_args(AnchorName)

CHECKPOINTS = "_checkpoints"
"""Under OUT: the codecs of training runs that are evaluated, CHECKPOINTS/RUN/PHASE/CHECKPOINT."""

_NAME = re.compile(r"[\w.+-]+")


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
    reconstructions: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=DIR: pictures decoded elsewhere, DIR/POINT/KEY.png, with a table of their files' sizes, DIR/sizes.csv or
    sizes.parquet (key, point, bytes); give it again for each other."""
    command: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME='encoder -q {q} {in} {out}; decoder {out} {png}': two programs, run without a shell in a scratch directory;
    give it again for each other."""
    points: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """10,20,30: what {q} stands for in a --command; given once for all of them, or as often as --command."""
    command_limit_s: float = may_change(300.0)
    """Seconds that a program of --command may take for a picture."""
    compressai: tuple[str, ...] = ()
    """Models of CompressAI (bmshj2018-hyperprior, mbt2018-mean, cheng2020-anchor ...) whose weights are at hand."""
    reference: str = may_change("jpeg")
    """The system against which BD-rates are: an anchor, or a NAME that was given."""
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
    weights: str | None = may_change(None)
    """Directory with the files of networks that metrics and --compressai need ('corrdiff metrics' names them); where
    torch keeps its downloads (TORCH_HOME) where it is not given."""
    column: str | None = None
    """Of Parquet tables: the column with the pictures' bytes, or with their paths or URIs."""

    def __post_init__(self) -> None:
        self.settings()  # checks its ranges
        for field in ("qualities", "fidelities", "steps", "anchors", "compressai"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                raise UsageError(f"--{field} must be different values, not {' '.join(map(str, values))}")
        for field in ("qualities", "fidelities"):
            if not getattr(self, field):
                raise UsageError(f"--{field} must have a value at least")
        given = [name for name, _ in (*self.named("command"), *self.named("reconstructions"))]
        names = [*self.anchors, *given, *self.compressai]
        for name in given:
            if names.count(name) > 1:
                raise UsageError(f"the name {name} is given to two systems")
        if self.reference not in names and names:
            raise UsageError(f"--reference {self.reference} is not among {' '.join(names)}")
        if len(self.points) not in (min(1, len(self.command)), len(self.command)):
            raise UsageError(f"--points is given {len(self.points)} times for {len(self.command)} --command")
        for text in self.points:
            self._check_points(text)
        check_positive(self, "limit", "workers", "max_pixels")
        if self.command_limit_s <= 0:
            raise UsageError(f"--command-limit-s must be above 0, not {self.command_limit_s:g}")
        if self.show < 0:
            raise UsageError(f"--show must not be negative, not {self.show}")

    @staticmethod
    def _check_points(text: str) -> None:
        points = text.split(",")
        try:
            numbers = {float(point) for point in points}
        except ValueError:
            raise UsageError(f"--points {text} must be numbers with commas between them") from None
        if len(numbers) < len(points):
            raise UsageError(f"--points {text} must be different numbers")

    def named(self, field: Literal["command", "reconstructions"]) -> list[tuple[str, str]]:
        """Give the names and values of an option of NAME=VALUE. Raises `UsageError` where one is not."""
        found = [text.partition("=") for text in getattr(self, field)]
        for (name, _, value), text in zip(found, getattr(self, field), strict=True):
            if not _NAME.fullmatch(name) or not value.strip():
                raise UsageError(f"--{field} must be NAME=..., the name of letters, digits and . _ + -, not {text}")
        return [(name, value) for name, _, value in found]

    def command_points(self) -> list[tuple[str, ...]]:
        """The points of each command."""
        each = self.points if len(self.points) == len(self.command) else self.points * len(self.command)
        return [tuple(text.split(",")) for text in each]

    def settings(self) -> list[Settings]:
        """What each codec is asked for."""
        middle = self.qualities[len(self.qualities) // 2] if self.qualities else DEFAULT_QUALITY
        grid = [Settings(quality, fidelity) for quality in self.qualities for fidelity in self.fidelities]
        return grid + [Settings(middle, DEFAULT_FIDELITY, steps) for steps in self.steps]

    def decodes_both(self, settings: Settings) -> bool:
        """Whether a file is decoded by D alone and without the correction too: one of each quality."""
        return settings.steps is None and settings.fidelity == self.fidelities[0]
