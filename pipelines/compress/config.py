"""The options of `corrdiff compress`."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from corrdiff.config import DEFAULT_FIDELITY, DEFAULT_QUALITY, Settings
from corrdiff.errors import UsageError
from pipelines.inputs.samples import ALL, NONE, Travels
from pipelines.options import Device, check_positive, identity, may_change


@dataclass(frozen=True)
class CompressConfig:
    """How to compress a dataset."""

    quality: float | None = None
    """Rate: 0 (smallest files) to 7 (best pictures), in steps of 1/16; 4 where neither it nor a target is given."""
    target_bpp: float | None = None
    """Instead of a quality: bits a pixel over the whole dataset. Each picture takes the quality at which bits gain as
    much PSNR as in all others."""
    target_psnr: float | None = None
    """The same for the mean PSNR of the pictures, in dB."""
    fidelity: float = DEFAULT_FIDELITY
    """1 asks for the least distortion, 0 for the most natural texture."""
    steps: int | None = None
    """Network evaluations for each picture, 0 for D's picture alone; the codec's default where it is not given."""
    unit: int = 64
    """Pictures in one part of the output, which is done or not done as a whole."""
    batch: int = 4
    """Pictures of one size that go through the networks together."""
    workers: int | None = may_change(None)
    """Most workers at a time; where it is not given, as many as the cluster has GPUs or CPUs."""
    device: Device = may_change("auto")
    """GPUs where the cluster has them, unless told."""
    precision: Literal["fp32", "bf16"] | None = None
    """Where it is not given, bf16 on GPUs and on CPUs that compute in it."""
    max_pixels: int = may_change(1 << 28)
    """Larger pictures are failures."""
    lpips_weights: str | None = may_change(None)
    """File with torchvision's AlexNet weights; looked for under TORCH_HOME where it is not given."""
    column: str | None = None
    """Of Parquet tables: the column with the pictures' bytes, or with their paths or URIs."""
    columns: tuple[str, ...] = (ALL,)
    """What travels with the pictures: all, none, or names: of tables, columns; of tars and folders, endings of the
    files that share a picture's name (txt json)."""
    picture: str | None = None
    """Of tars and folders: the ending of the pictures that are compressed (jpg, left.png), where samples have several;
    the others then travel. Where it is not given, each picture is compressed."""
    keep: tuple[Literal["exif", "xmp"], ...] = ()
    """Of what is inside picture files beside pixels: kept as KEY.picture.exif and KEY.picture.xmp. Cameras write there
    when, where (GPS), by whom and with what a picture was taken."""
    verify: str = "latents"
    """Every file is read back to its latents before it counts. pixels decodes it in full too, pixels:0.05 does that to
    5% of them; their quality is then that of the decoded file."""
    max_failures: int | None = may_change(None)
    """End the job when more pictures than this have failed."""

    def __post_init__(self) -> None:
        self.settings()  # checks its ranges
        if len([v for v in (self.quality, self.target_bpp, self.target_psnr) if v is not None]) > 1:
            raise UsageError("--quality, --target-bpp and --target-psnr: give one of them")
        for name, target in (("bpp", self.target_bpp), ("psnr", self.target_psnr)):
            if target is not None and not 0 < target < math.inf:
                raise UsageError(f"--target-{name} must be positive, not {target}")
        check_positive(self, "unit", "batch", "max_pixels", "workers")
        if self.max_failures is not None and self.max_failures < 0:
            raise UsageError(f"--max-failures must not be negative, not {self.max_failures}")
        self._verified_share()
        if self.picture is not None and self.column is not None:
            raise UsageError("--picture is of tars and folders; of tables --column says where the pictures are")

    def travels(self) -> Travels:
        """What is kept of a sample beside its picture."""
        return Travels(self.columns or (NONE,), (self.picture or "").lower().lstrip("."))

    @property
    def has_target(self) -> bool:
        """Whether each picture finds its own quality."""
        return self.target_bpp is not None or self.target_psnr is not None

    def settings(self) -> Settings:
        """The settings of a picture; with a target, its quality is still to be found."""
        return Settings(DEFAULT_QUALITY if self.quality is None else self.quality, self.fidelity, self.steps)

    def _verified_share(self) -> float:
        """The share of the pictures that is decoded in full."""
        found = re.fullmatch(r"latents|pixels(?::(0?\.\d+|[01](?:\.0*)?))?", self.verify)
        if not found:
            raise UsageError(f"--verify must be latents, pixels or pixels:SHARE (say pixels:0.05), not '{self.verify}'")
        return 0.0 if self.verify == "latents" else float(found[1] or 1)

    def verifies_pixels(self, key: str) -> bool:
        """Whether the picture of that key is decoded in full; the same on every machine."""
        digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") < self._verified_share() * 2**32

    def identity(self) -> dict[str, Any]:
        """What makes two compressions the same; with a target, no quality does."""
        quality = None if self.has_target else self.settings().quality
        return identity(self) | {"quality": quality, "columns": list(self.columns), "keep": sorted(set(self.keep))}
