"""What `corrdiff train` can be told, and what is refused at once."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from corrdiff.errors import UsageError
from pipelines.options import Device, check_positive, may_change

PresetName = Literal["tiny", "small", "base"]
PhaseName = Literal["phase1", "phase2", "phase3"]


@dataclass(frozen=True)
class TrainConfig:
    """One training phase."""

    shards: str
    """Directory or URI that 'corrdiff shard' wrote; or, with --shards-codec, 'corrdiff compress'."""
    shards_codec: str | None = may_change(None)
    """Of a compressed dataset, the codec that wrote it: squares of its decoded pictures are trained on."""
    storage: str = may_change("runs")
    """Where runs live: a directory that every node sees, or s3://bucket/prefix."""
    name: str = may_change("corrdiff")
    """Name of the run; the same command with the same name goes on where it stopped."""
    preset: PresetName = "tiny"
    """Size of the networks."""
    init_from: str | None = None
    """Codec directory to start from (needed by phases 2 and 3 unless this run has finished the one before)."""
    crops_total: int = 1_000_000
    """Length of the phase in crops; all schedules scale with it."""
    batch: int = 16
    """Crops in a step over all workers."""
    micro_batch: int | None = may_change(None)
    """Crops in one forward pass of one worker; the rest of the batch is gradient accumulation."""
    crop: int = 128
    """Side of the training crop, cut at random from the shard's crops; a multiple of 64."""
    lr: float = 1e-3
    """Peak learning rate of Adam."""
    beta: float = 0.03
    """Rate weight at the middle quality; larger means smaller files."""
    lpips_weight: float = 0.0
    """Weight w of LPIPS in the loss; needs its backbone (see --lpips-weights)."""
    lpips_weights: str | None = may_change(None)
    """File with torchvision's AlexNet weights; looked for under TORCH_HOME where it is not given."""
    steps: Literal[1, 2, 4] = 2
    """Phase 3: evaluations of the score network to train it for; its codec runs that many unless told."""
    fine_weight: float = 0.1
    """Phase 3: weight of the squared error of the fine part, which keeps edges in their places; the coarse part's is
    1."""
    texture_weight: float = 0.002
    """Phase 3: weight of the texture error; with the default its gradient is about as large as that of the squared
    error of the coarse part."""
    adversarial_weight: float = 0.004
    """Phase 3: weight of the patch discriminator; the default is HiFiC's, over its weight of the squared error."""
    gradient_clip: float = 1.0
    """Largest gradient norm."""
    transforms_share: float = 0.6
    """Phase 1: share of the run, at its beginning, in which E, the entropy model and D train alone; a step then costs
    half of what it costs with all networks."""
    score_share: float = 0.25
    """Phase 1: share of the run after that in which the score network alone trains, on latents that do not move. In the
    rest all networks train together."""
    seed: int = 0
    """Everything random is a function of this, the epoch and the crop's key."""
    workers: str = may_change("1")
    """Data-parallel workers, one GPU each where there are GPUs. MIN:MAX starts with what there is, grows when nodes
    come and shrinks when they go; the batch stays as it is."""
    zero_stage: Literal["auto", 0, 1, 2, 3] = may_change("auto")
    """What DeepSpeed partitions over the workers: nothing, moments, gradients too, weights too. auto takes the lowest
    with which the states leave most of a worker's memory to activations."""
    activation_checkpointing: bool | None = may_change(None)
    """Keep no activations inside residual blocks and compute them again backwards: less memory, a quarter slower. Where
    it is not given: where those of a micro-batch would take more than half of a worker's memory."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the networks; weights and moments are always fp32."""
    device: Device = may_change("auto")
    """GPUs where the cluster has them, unless told."""
    checkpoint_minutes: float = may_change(10.0)
    """Minutes between checkpoints: what a machine that vanishes costs at most, however many there are."""
    checkpoint_every: int | None = may_change(None)
    """Crops between checkpoints, in the place of minutes."""
    log_every: int = may_change(10)
    """Steps between points of the curves in MLflow; each point is the mean over those steps."""
    keep_checkpoints: int = may_change(2)
    """Finished checkpoints that are kept."""
    resize_every: float = may_change(60.0)
    """With --workers MIN:MAX, seconds between looks for machines that have come; a resize costs a restart."""
    validate_minutes: float = may_change(30.0)
    """Minutes between measurements of real encodes and decodes, with pictures, in MLflow: on SHARDS/val where it is,
    else on a few training crops."""
    validate_every: int | None = may_change(None)
    """Crops between measurements, in the place of minutes: then runs are measured at the same crops."""
    max_failures: int = may_change(3)
    """Restarts from the last checkpoint after worker failures."""

    def __post_init__(self) -> None:
        check_positive(
            self, "crops_total", "batch", "checkpoint_every", "keep_checkpoints", "validate_every", "log_every"
        )
        for option in ("checkpoint_minutes", "validate_minutes"):
            if not 0 < getattr(self, option) < math.inf:
                raise UsageError(f"--{option.replace('_', '-')} must be over 0, not {getattr(self, option)}")
        if self.crop % 64 or self.crop < 64:
            raise UsageError(f"--crop must be a multiple of 64, not {self.crop}")
        if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", self.workers) or self.min_workers > self.max_workers:
            raise UsageError(f"--workers must be a number or MIN:MAX, not '{self.workers}'")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise UsageError(f"--micro-batch must be at least 1, not {self.micro_batch}")
        self._check_batch()
        for option in ("fine_weight", "texture_weight", "adversarial_weight"):
            if getattr(self, option) < 0:
                raise UsageError(f"--{option.replace('_', '-')} must be at least 0, not {getattr(self, option)}")
        if min(self.transforms_share, self.score_share) < 0 or self.transforms_share + self.score_share > 1:
            raise UsageError(
                "--transforms-share and --score-share must be at least 0 and together at most 1, "
                f"not {self.transforms_share} and {self.score_share}"
            )
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
        """The fewest workers that the run may have."""
        return int(self.workers.split(":")[0])

    @property
    def max_workers(self) -> int:
        """The most workers that the run may have."""
        return int(self.workers.split(":")[-1])

    def micro_batch_size(self, world_size: int) -> int:
        """Give the crops in one forward pass of one worker."""
        return self.micro_batch or self.batch // world_size

    def accumulation(self, world_size: int) -> int:
        """Count the micro-batches of one worker in a step."""
        return self.batch // world_size // self.micro_batch_size(world_size)
