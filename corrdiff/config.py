"""The shape of a codec as frozen dataclasses, and the three presets.

Only the standard library is imported here, so that a configuration can be read anywhere.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from corrdiff.errors import UsageError

LATENT_STRIDE = 16
"""One latent position covers 16x16 pixels."""

LAP = LATENT_STRIDE // 2
"""Pixels beyond them, on each side, that the functions of a lapped transform reach."""

HYPER_STRIDE = 64
"""One hyperlatent position covers 64x64 pixels; pictures are padded to a multiple of it."""

QUALITIES = 8
"""Quality levels of one model; 0 is the lowest rate."""

QUALITY_PARTS = 16
"""Qualities between two levels, and one of the levels."""

BUILTIN_SCHEME = "builtin:"
BUILTIN = "builtin:tiny"
"""The trained codec inside this package, as it is named where a codec directory could be."""

DEFAULT_QUALITY = 4
DEFAULT_FIDELITY = 0.5

MAX_BLOCKS = 64
"""Residual blocks at one resolution: what a configuration may ask for."""

T_START = 0.4
"""Time at which the corrected reverse process starts unless told, from D's picture diffused to it. At noisier times the
estimate may be D's as well: factors of 1 there cost neither PSNR nor texture, and the score network is not asked."""
T_MAX = 0.98
"""The latest time; a process that starts there starts from noise alone: alpha_bar is about 0.001."""

Correction = Literal["grid", "paper"]
"""A construction of the correction: this project's own, or the paper's (`DiffusionConfig.corrected_by`)."""
TEXTURE, SQUARED_ERROR = "texture", "squared error"
"""Criteria by which an encoder chooses factors."""
MAX_PLANES = 2
GRID_UNIT = 16
MAX_STEPS, MAX_FACTOR_BITS, MAX_GRID = 64, 6, 255 * GRID_UNIT
"""What the file format can say of steps, bits of a factor, and the side of a factor cell with its unit, in pixels."""

MIN_TILE, MAX_TILE = 256, 255 * HYPER_STRIDE
"""Sides of a tile that the file format can say, in pixels; multiples of HYPER_STRIDE."""

AUTO_TILE = 1024
AUTO_TILE_PIXELS = 1 << 22
"""Pictures with more pixels are cut into tiles of AUTO_TILE unless the caller says otherwise."""


def is_tile(side: int) -> bool:
    """Say whether that is a tile's side, or the 0 of a picture that is not tiled."""
    return side == 0 or (MIN_TILE <= side <= MAX_TILE and side % HYPER_STRIDE == 0)


def _stage_count(patch: int) -> int:
    """Count the resolutions from 1/patch down to 1/16, both included."""
    return int(math.log2(LATENT_STRIDE // patch)) + 1


def _check_stages(what: str, patch: int, channels: tuple[int, ...]) -> None:
    if patch not in (1, 2, 4, 8):
        raise UsageError(f"{what}: patch must be 1, 2, 4 or 8, not {patch}")
    if len(channels) != _stage_count(patch):
        raise UsageError(
            f"{what}: patch {patch} needs channels for {_stage_count(patch)} resolutions, not {len(channels)}"
        )
    if any(c <= 0 for c in channels):
        raise UsageError(f"{what}: channels must be positive, not {channels}")


def _check_blocks(what: str, blocks: int) -> None:
    if not 1 <= blocks <= MAX_BLOCKS:
        raise UsageError(f"{what}: blocks must be from 1 to {MAX_BLOCKS}, not {blocks}")


def _later(default: Any) -> Any:
    """A field that came after the first codecs: where a configuration does not name it, it has its default.

    One that has its default is not named, so that the fingerprints of those codecs stay.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def _later_fields(section: Any) -> dict[str, bool]:
    """Say of each field that came later whether it has its default."""
    return {
        field.name: getattr(section, field.name) == field.default
        for field in dataclasses.fields(section)
        if field.metadata.get("later")
    }


@dataclass(frozen=True)
class TransformConfig:
    """What defines the analysis transform, the hyper transforms and the privileged decoder."""

    patch: int = 4
    """Pixels are unshuffled by this before the first convolution (4: work at a quarter of the resolution)."""
    channels: tuple[int, ...] = (64, 96, 128)
    """Channels at strides patch, 2*patch ... 16."""
    blocks: int = 2
    """Residual blocks at each resolution."""
    latent_channels: int = 96
    """M, channels of y."""
    hyper_channels: int = 64
    """Channels of z and of the hyper transforms."""
    slices: tuple[int, ...] = _later(())
    """Channels of y that are coded after one another, each slice with those before as its context; without any all of
    them at once, by z alone."""
    context_channels: int = _later(0)
    """Width of the networks that predict slices."""
    lapped: bool = _later(False)
    """Whether E is a linear transform with overlapping bases and D starts from its inverse; patch, channels and blocks
    are then those of D alone."""

    def __post_init__(self) -> None:
        _check_stages("transform", self.patch, self.channels)
        if self.lapped and self.latent_channels > 3 * LATENT_STRIDE**2:
            raise UsageError(
                f"transform: there are {3 * LATENT_STRIDE**2} lapped functions, not {self.latent_channels}"
            )
        _check_blocks("transform", self.blocks)
        if min(self.latent_channels, self.hyper_channels) < 1:
            raise UsageError("transform: latent_channels and hyper_channels must be at least 1")
        if self.slices and (sum(self.slices) != self.latent_channels or min(self.slices) < 1):
            raise UsageError(f"transform: slices {self.slices} do not make up {self.latent_channels} latent_channels")
        if bool(self.slices) != (self.context_channels > 0):
            raise UsageError("transform: slices and context_channels go together")


@dataclass(frozen=True)
class DenoiserConfig:
    """What defines the score network and the context network that conditions it."""

    patch: int = 4
    """Pixels are unshuffled by this before the first convolution."""
    channels: tuple[int, ...] = (64, 96, 128)
    """Channels of the U-Net at strides patch, 2*patch ... 16."""
    context_channels: tuple[int, ...] = (48, 64, 96)
    """Channels of the context feature maps at the same strides, concatenated there."""
    blocks: int = 1
    """Residual blocks at each resolution, on the way down and on the way up."""
    time_channels: int = 128
    """Width of the time embedding."""
    sees_decoder: bool = _later(False)
    """Whether the finest context map has D's picture in it."""

    @property
    def map_channels(self) -> tuple[int, ...]:
        """Count the channels of the context maps, D's picture included."""
        finest, *others = self.context_channels
        return (finest + self.sees_decoder * 3 * self.patch**2, *others)

    def __post_init__(self) -> None:
        _check_stages("denoiser", self.patch, self.channels)
        _check_blocks("denoiser", self.blocks)
        if self.time_channels < 2 or self.time_channels % 2:
            raise UsageError(f"denoiser: time_channels must be even and at least 2, not {self.time_channels}")
        if len(self.context_channels) != len(self.channels):
            raise UsageError("denoiser: context_channels must name as many resolutions as channels")


@dataclass(frozen=True)
class DiffusionConfig:
    """How this codec samples and corrects; the steps can be others for one picture."""

    steps: int = 8
    """S, network evaluations in the reverse process."""
    grid: int = 128
    """Side of a factor cell in pixels; 0 is one cell for the whole picture."""
    factor_bits: int = 4
    """Bits of one correction factor."""
    start: float = _later(T_START)
    """Time at which the process starts, from D's picture diffused to it; T_MAX is noise alone."""
    planes: int = _later(2)
    """Factors of a cell in a step: one for all of the difference to D, or two, for its coarse part and its fine one."""
    criterion: str = _later(TEXTURE)
    """What the encoder chooses factors by: "texture" weighs squared error against texture by the fidelity,
    "squared error" is least squares whatever the fidelity."""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise UsageError(f"diffusion: steps must be from 1 to {MAX_STEPS}, not {self.steps}")
        if not 0 <= self.grid <= MAX_GRID or self.grid % GRID_UNIT:
            raise UsageError(
                f"diffusion: grid must be 0 or a multiple of {GRID_UNIT} up to {MAX_GRID} pixels, not {self.grid}"
            )
        if not 1 <= self.factor_bits <= MAX_FACTOR_BITS:
            raise UsageError(f"diffusion: factor_bits must be from 1 to {MAX_FACTOR_BITS}, not {self.factor_bits}")
        if not 0 < self.start <= T_MAX:
            raise UsageError(f"diffusion: start must be over 0 and at most {T_MAX}, not {self.start}")
        if not 1 <= self.planes <= MAX_PLANES:
            raise UsageError(f"diffusion: planes must be from 1 to {MAX_PLANES}, not {self.planes}")
        if self.criterion not in (TEXTURE, SQUARED_ERROR):
            raise UsageError(f"diffusion: criterion must be '{TEXTURE}' or '{SQUARED_ERROR}', not '{self.criterion}'")

    def corrected_by(self, correction: Correction) -> DiffusionConfig:
        """Give the same steps and bits with another construction of the correction.

        "grid" is this project's own. "paper" is how we read arXiv 2404.04916: from noise, one factor a step for the
        whole picture, (1 - gamma) xhat0 + gamma D, found by least squares.
        """
        if correction == "grid":
            return DiffusionConfig(steps=self.steps, factor_bits=self.factor_bits)
        return DiffusionConfig(self.steps, 0, self.factor_bits, start=T_MAX, planes=1, criterion=SQUARED_ERROR)


@dataclass(frozen=True)
class Settings:
    """How to compress a picture."""

    quality: float = DEFAULT_QUALITY
    """Rate: 0 (smallest file) to 7 (best picture), in steps of 1/16."""
    fidelity: float = DEFAULT_FIDELITY
    """1 asks for the least distortion, 0 for the most natural texture."""
    steps: int | None = None
    """Network evaluations, 1 to 64, or 0 for D's picture alone; the codec's own default where it is not given."""
    tile: int | None = None
    """Side of a tile in pixels, a multiple of 64 from 256 on; 0 for none; by the picture's size where not given."""

    def __post_init__(self) -> None:
        if not 0 <= self.quality <= QUALITIES - 1 or self.quality * QUALITY_PARTS % 1:
            raise UsageError(
                f"quality must be from 0 to {QUALITIES - 1} in steps of 1/{QUALITY_PARTS}, not {self.quality}"
            )
        if not 0.0 <= self.fidelity <= 1.0:
            raise UsageError(f"fidelity must be from 0 to 1, not {self.fidelity}")
        if self.steps is not None and not 0 <= self.steps <= MAX_STEPS:
            raise UsageError(f"steps must be from 0 to {MAX_STEPS}, not {self.steps}")
        if self.tile is not None and not is_tile(self.tile):
            raise UsageError(
                f"tile must be 0 or a multiple of {HYPER_STRIDE} from {MIN_TILE} to {MAX_TILE} pixels, not {self.tile}"
            )

    def tile_for(self, height: int, width: int) -> int:
        """Find the side of the tiles of a picture of that size; 0 for none."""
        if self.tile is not None:
            return self.tile
        return AUTO_TILE if height * width > AUTO_TILE_PIXELS else 0


@dataclass(frozen=True)
class CodecConfig:
    """Everything that defines a codec's networks."""

    preset: str
    transform: TransformConfig
    denoiser: DenoiserConfig
    diffusion: DiffusionConfig = DiffusionConfig()

    @property
    def file_version(self) -> int:
        """The version of this codec's files: 1 where it has nothing that came later."""
        return 1 if all(usual for section in self._sections for usual in _later_fields(section).values()) else 2

    @property
    def _sections(self) -> tuple[TransformConfig, DenoiserConfig, DiffusionConfig]:
        return self.transform, self.denoiser, self.diffusion

    def check(self, settings: Settings) -> None:
        """Raise `UsageError` where this codec's files cannot say such settings."""
        if self.file_version > 1:
            return
        if settings.quality % 1:
            raise UsageError(
                f"quality must be a whole number for this codec, whose files are of version 1, not {settings.quality}"
            )
        if settings.steps == 0:
            raise UsageError("steps must be at least 1 for this codec, whose files are of version 1, not 0")

    def to_dict(self) -> dict[str, Any]:
        """Give plain dictionaries, lists, strings and numbers, as in `config.json`."""
        result: dict[str, Any] = dataclasses.asdict(self)
        for section in self._sections:
            for name, usual in _later_fields(section).items():
                if usual:
                    del result[_SECTIONS[type(section)]][name]
        return result

    @staticmethod
    def from_dict(data: dict[str, Any]) -> CodecConfig:
        """Read what `to_dict` wrote. Raises `UsageError` for unknown, missing or ill-typed fields."""
        if not isinstance(data, dict):
            raise UsageError("configuration: it is not an object")
        parts = dict(data)
        for kind, name in _SECTIONS.items():
            parts[name] = _build(kind, parts.get(name), name)
        config: CodecConfig = _build(CodecConfig, parts, "codec")
        return config


_SECTIONS: dict[type[Any], str] = {
    TransformConfig: "transform", DenoiserConfig: "denoiser", DiffusionConfig: "diffusion",
}  # fmt: skip


def _build(kind: Any, data: Any, name: str) -> Any:
    """Construct a flat dataclass from JSON values, checking names and types."""
    if not isinstance(data, dict):
        raise UsageError(f"configuration: section '{name}' is missing or is not an object")
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    later = {field.name for field in dataclasses.fields(kind) if field.metadata.get("later")}
    unknown, missing = set(data) - set(fields), set(fields) - set(data) - later
    if unknown or missing:
        raise UsageError(
            f"configuration: section '{name}' has unknown fields {sorted(unknown)} and lacks {sorted(missing)}"
        )
    values: dict[str, Any] = {}
    for key, value in data.items():
        if fields[key] == "int" and (
            not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1 << 16
        ):
            raise UsageError(f"configuration: {name}.{key} must be a whole number from 0 to 65536, not {value!r}")
        if fields[key] == "tuple[int, ...]":
            if not isinstance(value, list | tuple) or not all(isinstance(v, int) and 0 < v <= 1 << 16 for v in value):
                raise UsageError(f"configuration: {name}.{key} must be a list of whole numbers, not {value!r}")
            value = tuple(value)
        if fields[key] == "bool" and not isinstance(value, bool):
            raise UsageError(f"configuration: {name}.{key} must be true or false, not {value!r}")
        if fields[key] == "str" and not isinstance(value, str):
            raise UsageError(f"configuration: {name}.{key} must be a string, not {value!r}")
        if fields[key] == "float":
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise UsageError(f"configuration: {name}.{key} must be a number, not {value!r}")
            value = float(value)
        values[key] = value
    return kind(**values)


def tiny() -> CodecConfig:
    """Give a codec of 9 M parameters, for demonstrations and tests: it trains and runs on two CPU cores."""
    return CodecConfig(
        "tiny",
        TransformConfig(
            patch=4, channels=(48, 96, 160), blocks=1, latent_channels=192, hyper_channels=96,
            slices=(8, 24, 56, 104), context_channels=96, lapped=True,
        ),
        DenoiserConfig(sees_decoder=True),
    )  # fmt: skip


def small() -> CodecConfig:
    """Give a codec of 26 M parameters, for one GPU."""
    return CodecConfig(
        "small",
        TransformConfig(
            patch=4, channels=(64, 128, 192), blocks=2, latent_channels=192, hyper_channels=128,
            slices=(8, 24, 56, 104), context_channels=128, lapped=True,
        ),
        DenoiserConfig(
            channels=(128, 192, 256), context_channels=(64, 96, 128), blocks=2, time_channels=256, sees_decoder=True
        ),
    )  # fmt: skip


def base() -> CodecConfig:
    """Give a codec of CDC's size (arXiv 2209.06950): 40 M parameters in the score network, 16 M in the transforms."""
    return CodecConfig(
        "base",
        TransformConfig(
            patch=4, channels=(128, 192, 256), blocks=2, latent_channels=256, hyper_channels=160,
            slices=(8, 24, 64, 160), context_channels=192, lapped=True,
        ),
        DenoiserConfig(
            channels=(192, 320, 416), context_channels=(96, 128, 160), blocks=2, time_channels=512, sees_decoder=True
        ),
    )  # fmt: skip


PRESETS: dict[str, Callable[[], CodecConfig]] = {"tiny": tiny, "small": small, "base": base}


def preset(name: str) -> CodecConfig:
    """Give the preset of that name. Raises `UsageError` for another name."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset '{name}'; there are {', '.join(PRESETS)}")
    return PRESETS[name]()
