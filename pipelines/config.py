"""What the long commands can be told, as frozen dataclasses; the command line is made from them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from corrdiff.config import DEFAULT_FIDELITY, DEFAULT_QUALITY, Settings
from corrdiff.errors import UsageError

PresetName = Literal["tiny", "small", "base"]
PhaseName = Literal["phase1", "phase2"]
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class ShardConfig:
    """Cut pictures into WebDataset shards of training crops."""

    crop: int = 256
    """Side of a crop in pixels."""
    stride: int | None = None
    """Distance between crops; the crop's side where it is not given. Crops always reach the picture's borders."""
    images_per_shard: int = 64
    """Pictures that go into one shard."""
    seed: int = 0
    """Order of the pictures over the shards."""

    def __post_init__(self) -> None:
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
    """Phase 1: share of the run before the score network's loss reaches the encoder."""
    seed: int = 0
    """Everything random is a function of this, the epoch and the crop's key."""
    workers: int = 1
    """Data-parallel workers: one GPU each where there are GPUs."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed partitions over the workers: nothing, moments, gradients too, weights too."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks; weights and moments are always fp32."""
    device: Device = "auto"
    """GPUs where the cluster has them, unless told."""
    checkpoint_every: int = 50_000
    """Crops between checkpoints."""
    log_every: int = 10
    """Steps between points of the curves in MLflow; each point is the mean over those steps."""
    preview_every: int = 50_000
    """Crops between side-by-side pictures in MLflow."""
    max_failures: int = 3
    """Restarts from the last checkpoint after worker failures."""

    def __post_init__(self) -> None:
        for field in ("images_total", "batch", "workers", "checkpoint_every", "preview_every", "log_every"):
            if getattr(self, field) < 1:
                raise UsageError(f"--{field.replace('_', '-')} must be at least 1, not {getattr(self, field)}")
        if self.crop % 64 or self.crop < 64:
            raise UsageError(f"--crop must be a multiple of 64, not {self.crop}")
        if self.batch % self.workers:
            raise UsageError(f"--batch {self.batch} must be a multiple of --workers {self.workers}")
        if (self.batch // self.workers) % self.micro_batch_size:
            raise UsageError(
                f"--batch {self.batch} gives each of {self.workers} workers {self.batch // self.workers} crops, "
                f"which is not a multiple of --micro-batch {self.micro_batch}"
            )
        if not 0 <= self.lpips_weight < 1:
            raise UsageError(f"--lpips-weight must be from 0 to below 1, not {self.lpips_weight}")
        if "/" in self.name or not self.name or self.name.startswith("."):
            raise UsageError(f"--name must be a plain name, not '{self.name}'")

    @property
    def micro_batch_size(self) -> int:
        return self.micro_batch or self.batch // self.workers

    @property
    def accumulation(self) -> int:
        return self.batch // self.workers // self.micro_batch_size

    def identity(self) -> dict[str, Any]:
        """What makes two runs of one name the same run; the rest may change when a run goes on."""
        may_change = {
            "storage", "name", "workers", "zero_stage", "micro_batch", "device", "checkpoint_every", "preview_every",
            "log_every",
            "max_failures", "lpips_weights",
        }  # fmt: skip
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in may_change}


@dataclass(frozen=True)
class CompressConfig:
    """How to compress a dataset."""

    quality: int = DEFAULT_QUALITY
    """Rate: 0 (smallest files) to 7 (best pictures)."""
    fidelity: float = DEFAULT_FIDELITY
    """1 asks for the least distortion, 0 for the most natural texture."""
    steps: int | None = None
    """Network evaluations for each picture; the codec's default where it is not given."""
    unit: int = 64
    """Pictures in one part of the output, which is done or not done as a whole."""
    batch: int = 4
    """Pictures of one size that go through the networks together."""
    workers: int | None = None
    """Most workers at a time; one for each CPU or GPU of the cluster where it is not given."""
    device: Device = "auto"
    """GPUs where the cluster has them, unless told."""
    precision: Literal["fp32", "bf16"] | None = None
    """where it is not given, bf16 on GPUs and on CPUs that compute in it."""
    max_pixels: int = 1 << 28
    """Larger pictures are failures."""
    lpips_weights: str | None = None
    """File with torchvision's AlexNet weights; looked for under TORCH_HOME where it is not given."""

    def __post_init__(self) -> None:
        Settings(self.quality, self.fidelity, self.steps)  # checks its ranges
        for field in ("unit", "batch"):
            if getattr(self, field) < 1:
                raise UsageError(f"--{field} must be at least 1, not {getattr(self, field)}")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers must be at least 1, not {self.workers}")
