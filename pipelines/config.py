"""What the long commands can be told, as frozen dataclasses; the command line is made from them."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from corrdiff.config import DEFAULT_FIDELITY, DEFAULT_QUALITY, Settings
from corrdiff.errors import UsageError

PresetName = Literal["tiny", "small", "base"]
PhaseName = Literal["phase1", "phase2"]
AnchorName = Literal["jpeg", "jpeg2000", "webp", "avif", "jxl"]
Device = Literal["auto", "cpu", "cuda"]


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """What makes two identities differ, for the sentence that refuses; empty where they are the same."""
    names = sorted(k for k in {*there, *now} if there.get(k) != now.get(k))
    return "; ".join(f"{k}: {there.get(k)!r} there, {now.get(k)!r} now" for k in names)


def _check_positive(config: object, *fields: str) -> None:
    """Raises `UsageError` where one is given and below 1."""
    for field in fields:
        value = getattr(config, field)
        if value is not None and value < 1:
            raise UsageError(f"--{field.replace('_', '-')} must be at least 1, not {value}")


@dataclass(frozen=True)
class ShardConfig:
    """Cut pictures into WebDataset shards of training crops."""

    crop: int = 256
    """Side of a crop in pixels."""
    stride: int | None = None
    """Distance between crops; the crop's side where it is not given. Crops always reach the picture's borders."""
    images_per_shard: int = 64
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
        if self.images_per_shard < 1:
            raise UsageError("--images-per-shard must be at least 1")


@dataclass(frozen=True)
class TrainConfig:
    """One training phase."""

    shards: str
    """Directory or URI that 'corrdiff shard' wrote."""
    storage: str = "runs"
    """Where runs live: a directory that every node sees, or s3://bucket/prefix."""
    name: str = "corrdiff"
    """Name of the run; the same command with the same name goes on where it stopped."""
    preset: PresetName = "tiny"
    """Size of the networks."""
    init_from: str | None = None
    """Codec directory to start from (needed by phase 2 unless this run has finished phase 1)."""
    images_total: int = 1_000_000
    """Length of the phase in crops; all schedules scale with it."""
    batch: int = 16
    """Crops in a step over all workers."""
    micro_batch: int | None = None
    """Crops in one forward pass of one worker; the rest of the batch is gradient accumulation."""
    crop: int = 128
    """Side of the training crop, cut at random from the shard's crops; a multiple of 64."""
    lr: float = 1e-3
    """Peak learning rate of Adam."""
    beta: float = 0.0066
    """Rate weight at the middle quality; larger means smaller files."""
    lpips_weight: float = 0.0
    """Weight w of LPIPS in the loss; needs its backbone (see --lpips-weights)."""
    lpips_weights: str | None = None
    """File with torchvision's AlexNet weights; looked for under TORCH_HOME where it is not given."""
    gradient_clip: float = 1.0
    """Largest gradient norm."""
    warmup_share: float = 0.25
    """Phase 1: share of the run before the score network's loss reaches the encoder. In the first half of that the
    score network does not train at all, and steps are quicker."""
    seed: int = 0
    """Everything random is a function of this, the epoch and the crop's key."""
    workers: str = "1"
    """Data-parallel workers, one GPU each where there are GPUs. MIN:MAX starts with what there is, grows when nodes
    come and shrinks when they go; the batch stays as it is."""
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """What DeepSpeed partitions over the workers: nothing, moments, gradients too, weights too. auto takes the lowest
    with which the states leave most of a worker's memory to activations."""
    activation_checkpointing: bool | None = None
    """Keep no activations inside residual blocks and compute them again backwards: less memory, a quarter slower. Where
    it is not given: for the base preset alone."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks; weights and moments are always fp32."""
    device: Device = "auto"
    """GPUs where the cluster has them, unless told."""
    checkpoint_every: int = 50_000
    """Crops between checkpoints."""
    log_every: int = 10
    """Steps between points of the curves in MLflow; each point is the mean over those steps."""
    keep_checkpoints: int = 2
    """Finished checkpoints that are kept."""
    resize_every: float = 60.0
    """With --workers MIN:MAX, seconds between looks for machines that have come; a resize costs a restart."""
    validate_every: int = 50_000
    """Crops between measurements of real encodes and decodes, with pictures, in MLflow: on SHARDS/val where it is, else
    on a few training crops."""
    max_failures: int = 3
    """Restarts from the last checkpoint after worker failures."""

    def __post_init__(self) -> None:
        _check_positive(
            self, "images_total", "batch", "checkpoint_every", "keep_checkpoints", "validate_every", "log_every"
        )
        if self.crop % 64 or self.crop < 64:
            raise UsageError(f"--crop must be a multiple of 64, not {self.crop}")
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", self.workers) or self.min_workers > self.max_workers:
            raise UsageError(f"--workers must be a number or MIN:MAX, not '{self.workers}'")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UsageError(f"--micro-batch must be at least 1, not {self.micro_batch}")
        self._check_batch()
        if not 0 <= self.lpips_weight < 1:
            raise UsageError(f"--lpips-weight must be from 0 to below 1, not {self.lpips_weight}")
        if "/" in self.name or not self.name or self.name.startswith("."):
            raise UsageError(f"--name must be a plain name, not '{self.name}'")

    def _check_batch(self) -> None:
        """Each allowed number of workers must get equal parts of a batch, and each part whole micro-batches."""
        micro = self.micro_batch or 1
        unit = micro * math.lcm(*range(self.min_workers, self.max_workers + 1))
        if self.batch % unit:
            lower, higher = self.batch // unit * unit, -(-self.batch // unit) * unit
            nearest = f"{lower} and {higher}" if lower else str(higher)
            each = f", in micro-batches of {micro}" if self.micro_batch else ""
            fixed = self.min_workers == self.max_workers
            counts = f"{self.workers} workers" if fixed else f"every number of workers in {self.workers}"
            raise UsageError(
                f"--batch {self.batch} cannot be dealt equally to {counts}{each}; the nearest that can: {nearest}"
            )

    @property
    def min_workers(self) -> int:
        return int(self.workers.split(":")[0])

    @property
    def max_workers(self) -> int:
        return int(self.workers.split(":")[-1])

    @property
    def checkpoints_activations(self) -> bool:
        return self.preset == "base" if self.activation_checkpointing is None else self.activation_checkpointing

    def micro_batch_size(self, world_size: int) -> int:
        return self.micro_batch or self.batch // world_size

    def accumulation(self, world_size: int) -> int:
        """Micro-batches of one worker in a step."""
        return self.batch // world_size // self.micro_batch_size(world_size)

    def identity(self) -> dict[str, Any]:
        """What makes two runs of one name the same run; the rest may change when a run goes on."""
        may_change = {
            "storage", "name", "workers", "zero_stage", "activation_checkpointing", "micro_batch", "device",
            "checkpoint_every", "keep_checkpoints", "validate_every", "log_every", "resize_every", "max_failures",
            "lpips_weights",
        }  # fmt: skip
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in may_change}


@dataclass(frozen=True)
class CompressConfig:
    """How to compress a dataset."""

    quality: int | None = None
    """Rate: 0 (smallest files) to 7 (best pictures); 4 where neither it nor a target is given."""
    target_bpp: float | None = None
    """Instead of a quality: bits a pixel over the whole dataset. Each picture takes the quality at which bits gain as
    much PSNR as in all others."""
    target_psnr: float | None = None
    """The same for the mean PSNR of the pictures, in dB."""
    fidelity: float = DEFAULT_FIDELITY
    """1 asks for the least distortion, 0 for the most natural texture."""
    steps: int | None = None
    """Network evaluations for each picture; the codec's default where it is not given."""
    unit: int = 64
    """Pictures in one part of the output, which is done or not done as a whole."""
    batch: int = 4
    """Pictures of one size that go through the networks together."""
    workers: int | None = None
    """Most workers at a time; where it is not given, as many as the cluster has GPUs or CPUs."""
    device: Device = "auto"
    """GPUs where the cluster has them, unless told."""
    precision: Literal["fp32", "bf16"] | None = None
    """Where it is not given, bf16 on GPUs and on CPUs that compute in it."""
    max_pixels: int = 1 << 28
    """Larger pictures are failures."""
    lpips_weights: str | None = None
    """File with torchvision's AlexNet weights; looked for under TORCH_HOME where it is not given."""
    column: str | None = None
    """Of Parquet tables: the column with the pictures' bytes, or with their paths or URIs."""
    verify: str = "latents"
    """Every file is read back to its latents before it counts. pixels decodes it in full too, pixels:0.05 does that to
    5% of them; their quality is then that of the decoded file."""
    max_failures: int | None = None
    """End the job when more pictures than this have failed."""

    def __post_init__(self) -> None:
        self.settings()  # checks its ranges
        if len([v for v in (self.quality, self.target_bpp, self.target_psnr) if v is not None]) > 1:
            raise UsageError("--quality, --target-bpp and --target-psnr: give one of them")
        for name, target in (("bpp", self.target_bpp), ("psnr", self.target_psnr)):
            if target is not None and not 0 < target < math.inf:
                raise UsageError(f"--target-{name} must be positive, not {target}")
        _check_positive(self, "unit", "batch", "max_pixels", "workers")
        if self.max_failures is not None and self.max_failures < 0:
            raise UsageError(f"--max-failures must not be negative, not {self.max_failures}")
        self._verified_share()

    @property
    def has_target(self) -> bool:
        return self.target_bpp is not None or self.target_psnr is not None

    def settings(self) -> Settings:
        """Of a picture; with a target, but for its quality."""
        return Settings(DEFAULT_QUALITY if self.quality is None else self.quality, self.fidelity, self.steps)

    def _verified_share(self) -> float:
        """Of the pictures that are decoded in full."""
        found = re.fullmatch(r"latents|pixels(?::(0?\.\d+|[01](?:\.0*)?))?", self.verify)
        if not found:
            raise UsageError(f"--verify must be latents, pixels or pixels:SHARE (say pixels:0.05), not '{self.verify}'")
        return 0.0 if self.verify == "latents" else float(found[1] or 1)

    def verifies_pixels(self, key: str) -> bool:
        """Whether the picture of that key is decoded in full; the same on every machine."""
        digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
        return int.from_bytes(digest, "little") < self._verified_share() * 2**32

    def identity(self) -> dict[str, Any]:
        """What makes two compressions the same; the rest may change when one goes on."""
        may_change = {"workers", "device", "max_failures", "lpips_weights", "max_pixels"}
        quality = None if self.has_target else self.settings().quality
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in may_change} | {"quality": quality}


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
    workers: int | None = None
    """Most workers at a time; where it is not given, as many as the cluster has GPUs or CPUs."""
    device: Device = "auto"
    """GPUs where the cluster has them, unless told."""
    precision: Literal["fp32", "bf16"] | None = None
    """Where it is not given, bf16 on GPUs and on CPUs that compute in it."""
    max_pixels: int = 1 << 28
    """Larger pictures end the job."""

    def __post_init__(self) -> None:
        _check_positive(self, "workers", "max_pixels")


@dataclass(frozen=True)
class EvaluateConfig:
    """What an evaluation measures."""

    qualities: tuple[int, ...] = (0, 1, 2, 3, 5, 7)
    """Quality levels of the codecs."""
    fidelities: tuple[float, ...] = (1.0, 0.5, 0.0)
    """Fidelities at each quality."""
    steps: tuple[int, ...] = (2, 4, 16)
    """Numbers of steps other than the codec's own, at the middle quality and fidelity."""
    anchors: tuple[AnchorName, ...] = ("jpeg", "jpeg2000", "webp", "avif", "jxl")
    """Codecs that people know, to stand beside."""
    reference: AnchorName = "jpeg"
    """The anchor against which BD-rates are."""
    limit: int | None = None
    """Only so many of the pictures, the first ones."""
    show: int = 4
    """Pictures in the report to look at, spread over all."""
    workers: int | None = None
    """Most workers at a time; where it is not given, as many as the cluster has GPUs or CPUs."""
    device: Device = "auto"
    """GPUs where the cluster has them, unless told."""
    precision: Literal["fp32", "bf16"] | None = None
    """Where it is not given, bf16 on GPUs and on CPUs that compute in it."""
    max_pixels: int = 1 << 26
    """Larger pictures are failures."""
    lpips_weights: str | None = None
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
        _check_positive(self, "limit", "workers", "max_pixels")
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

    def identity(self) -> dict[str, Any]:
        """What makes two evaluations the same; the rest may change when one goes on."""
        may_change = {"workers", "device", "reference", "lpips_weights", "max_pixels"}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in may_change}
