"""`corrdiff`, also `python -m pipelines`: every command, with help that shows an example."""

from __future__ import annotations

import dataclasses
import importlib.util
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from corrdiff.cli import Decode, Encode, Inspect, Metrics
from corrdiff.command_line import guarded, run_program
from corrdiff.config import BUILTIN, Correction
from corrdiff.errors import UsageError
from pipelines.compress.config import CompressConfig
from pipelines.decompress.config import DecompressConfig
from pipelines.evaluate.config import CHECKPOINTS, EvaluateConfig
from pipelines.files import storage
from pipelines.shards.config import ShardConfig
from pipelines.show.config import ShowConfig
from pipelines.train.config import TrainConfig

DESCRIPTION = """Train a diffusion-based perceptual image codec on a Ray cluster, and compress whole datasets with it.

First steps: corrdiff demo --out demo-out

On a cluster, each with --help of its own:
  corrdiff submit -- COMMAND    run one of the commands below as a Ray job, and follow it
  corrdiff preflight            is every node of the cluster fit for an expensive job?"""

ON_CLUSTERS = "submit", "preflight"


@dataclasses.dataclass(frozen=True)
class Demo:
    """The whole road on sample pictures: shards, both training phases, codec, compressed dataset, report.

    Example: corrdiff demo --out demo-out
    """

    out: Path = Path("demo-out")
    """Directory for everything; running again goes on where it stopped."""

    def run(self) -> None:
        from pipelines.demo import demo

        demo(self.out)


@dataclasses.dataclass(frozen=True)
class CutShards:
    """Cut pictures into WebDataset shards of training crops and a manifest, in parallel on Ray; or verify shards.

    Example: corrdiff shard s3://bucket/photos s3://bucket/shards --crop 256 --val-fraction 0.02

    Example: corrdiff shard verify s3://bucket/shards
    """

    images: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IMAGES")]
    """Directory, glob, file, any fsspec URI, or sample: (pictures inside installed packages). The word verify reads the
    shards at OUT and compares them with their manifest."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Directory or URI of the shards; running again does what is missing."""
    config: ShardConfig = dataclasses.field(default_factory=ShardConfig)
    only: str | None = None
    """Cut this one shard again, say shard-00007.tar or val/shard-00000.tar."""

    def run(self) -> None:
        from pipelines.shards.command import run_sharding, run_verification

        if self.images == "verify":
            run_verification(self.out)
        else:
            run_sharding(self.images, self.out, self.config, self.only)


@dataclasses.dataclass(frozen=True)
class TrainPhase1:
    """Train everything: transforms, entropy model, score network and privileged decoder.

    Example: corrdiff train phase1 --shards shards --storage runs --name first --preset tiny --crops-total 20000
    """

    config: TrainConfig

    def run(self) -> None:
        from pipelines.train.command import run_phase

        run_phase(self.config, "phase1")


@dataclasses.dataclass(frozen=True)
class TrainPhase2:
    """Train the privileged decoder alone, everything else frozen.

    Starts from --init-from, or from phase 1 of the run of the same name.

    Example: corrdiff train phase2 --shards shards --storage runs --name first --crops-total 5000
    """

    config: TrainConfig

    def run(self) -> None:
        from pipelines.train.command import run_phase

        run_phase(self.config, "phase2")


@dataclasses.dataclass(frozen=True)
class TrainPhase3:
    """Train the score network alone for decoding in --steps steps, everything else frozen.

    Starts from --init-from, or from phase 2 of the run of the same name.

    Example: corrdiff train phase3 --shards shards --storage runs --name first --crops-total 5000 --steps 2
    """

    config: TrainConfig

    def run(self) -> None:
        from pipelines.train.command import run_phase

        run_phase(self.config, "phase3")


@dataclasses.dataclass(frozen=True)
class TrainAll:
    """The phases and their exports, as one job: phases 1 and 2, and phase 3 where its length is given.

    Example: corrdiff train all --shards s3://bucket/shards --storage s3://bucket/runs --name base-1 --preset base
    --workers 8 --precision bf16 --batch 64 --crop 256
    """

    config: TrainConfig
    phase2_crops_total: int | None = None
    """Length of phase 2 in crops; a quarter of phase 1 where it is not given."""
    phase3_crops_total: int | None = None
    """Length of phase 3 in crops; without it there is none."""

    def run(self) -> None:
        from pipelines.train.command import run_all

        run_all(self.config, self.phase2_crops_total, self.phase3_crops_total)


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a codec with Ray Train and DeepSpeed; the same command goes on where an interrupted run stopped.

    Example: corrdiff train all --shards shards --storage runs --name first --preset tiny --crops-total 20000
    """

    phase: (
        Annotated[TrainPhase1, tyro.conf.subcommand("phase1")]
        | Annotated[TrainPhase2, tyro.conf.subcommand("phase2")]
        | Annotated[TrainPhase3, tyro.conf.subcommand("phase3")]
        | Annotated[TrainAll, tyro.conf.subcommand("all")]
    )

    def run(self) -> None:
        self.phase.run()


@dataclasses.dataclass(frozen=True)
class Export:
    """The newest checkpoint of a run as a codec directory: weights, entropy tables, configuration.

    Example: corrdiff export runs/first codecs/first
    """

    run_uri: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """STORAGE/NAME of a training run, or one phase of it."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Directory or URI for the codec."""
    compact: bool = False
    """Weights of 8 bits: a quarter of the bytes, and another codec, whose files are its own."""
    correction: Correction | None = None
    """How the codec corrects the score network: on a grid of cells, as this project does, or as the paper has it, from
    noise with one factor a step for the whole picture. It is another codec, whose files are its own."""
    overwrite: bool = False
    """Write over another codec. What it has compressed can then be read with a copy of it alone."""

    def run(self) -> None:
        from pipelines.train.command import run_export

        run_export(self.run_uri, self.out, self.compact, self.correction, self.overwrite)


@dataclasses.dataclass(frozen=True)
class Compress:
    """Compress a dataset in parallel on Ray: bitstreams in WebDataset parts, metrics in Parquet, a run in MLflow.

    Example: corrdiff compress s3://bucket/photos s3://bucket/compressed --codec s3://bucket/codecs/first --quality 4

    Example: corrdiff compress "s3://bucket/shards/*.tar" s3://bucket/compressed --codec s3://bucket/codecs/first

    Example: corrdiff compress table.parquet compressed --column image --codec codecs/first
    """

    images: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IMAGES")]
    """Directory, glob, file, names in braces (shards-{0000..0099}.tar), any fsspec URI, or sample:. Tars are WebDataset
    shards, whose pictures are compressed; with --column, Parquet tables."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Directory or URI for the compressed dataset; running again does what is missing."""
    codec: str = BUILTIN
    """Codec directory or URI; builtin:tiny comes with this package."""
    config: CompressConfig = dataclasses.field(default_factory=CompressConfig)
    dry_run: bool = False
    """Only say how many pictures, bytes and hours it would be, from a few pictures."""
    extend: bool = False
    """Add what is new at IMAGES to a compression that has begun or is done. What is there stays as it is; pictures that
    have changed since are named."""
    retry_failed: bool = False
    """Try again what has failed; --reason says which of it."""
    reason: str = ""
    """With --retry-failed: only what failed for a reason with this text in it ("no such file")."""

    def run(self) -> None:
        from pipelines.compress.command import print_estimate, run_compression

        if self.reason and not self.retry_failed:
            raise UsageError("--reason says what --retry-failed tries again; give that, too")
        if self.dry_run:
            if self.extend or self.retry_failed:
                raise UsageError("--dry-run is of a whole compression; leave --extend and --retry-failed away")
            print_estimate(self.images, self.codec, self.config)
        else:
            retrying = self.reason if self.retry_failed else None
            run_compression(self.images, self.out, self.codec, self.config, self.extend, retrying)


@dataclasses.dataclass(frozen=True)
class Decompress:
    """A compressed dataset, or some of its pictures, back to picture files or shards of them, in parallel on Ray.

    Example: corrdiff decompress compressed pictures --codec codecs/first

    Example: corrdiff decompress s3://bucket/compressed pictures --codec codecs/first --keys beach harbour/night
    """

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """What 'corrdiff compress' wrote."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Directory or URI for the pictures; running again does what is missing."""
    codec: str = BUILTIN
    """The codec directory that the dataset was compressed with."""
    keys: tuple[str, ...] = ()
    """Only these pictures (keys as in the table): their bytes alone are read."""
    config: DecompressConfig = dataclasses.field(default_factory=DecompressConfig)

    def run(self) -> None:
        from pipelines.decompress.command import run_decompression

        run_decompression(self.dataset, self.out, self.codec, self.config, self.keys)


@dataclasses.dataclass(frozen=True)
class Show:
    """Look at pictures of a compressed dataset: some rows of its table, and a sheet of what they decode to.

    Example: corrdiff show compressed --codec codecs/first --worst psnr_db

    Example: corrdiff show s3://bucket/compressed --failed
    """

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """What 'corrdiff compress' wrote."""
    out: str = "contact-sheet.png"
    """File or URI for the sheet."""
    codec: str = BUILTIN
    """The codec directory that the dataset was compressed with."""
    overwrite: bool = False
    """Write over a file that is there."""
    config: ShowConfig = dataclasses.field(default_factory=ShowConfig)

    def run(self) -> None:
        from pipelines.show.command import show_pictures

        show_pictures(self.dataset, self.codec, self.out, self.overwrite, self.config)


@dataclasses.dataclass(frozen=True)
class Stats:
    """The table that a compression ended with, again, from its files alone.

    Example: corrdiff stats s3://bucket/compressed
    """

    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """What 'corrdiff compress' wrote."""

    def run(self) -> None:
        from pipelines.show.command import print_stats

        print_stats(self.dataset)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Rate-distortion curves of any codecs on the same pictures, in every metric that is at hand: one page.

    Real files, really decoded, in parallel on Ray: codecs of ours, those that people know (--anchors), any encoder
    and decoder (--command), pictures decoded elsewhere (--reconstructions), CompressAI's models (--compressai). Where
    none is named, the codec that comes with this package.

    Example: corrdiff evaluate sample: --limit 3

    Example: corrdiff evaluate s3://bucket/held-out --codec runs/a/phase2/codec --codec runs/b/phase2/codec --out report

    Example: corrdiff evaluate photos --command cjpeg='cjpeg -quality {q} -outfile {out} {in.bmp}; djpeg -bmp -outfile
    {bmp} {out}' --points 10,30,60,90
    """

    images: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="IMAGES")]
    """Directory, glob, file, names in braces (shards-{0000..0099}.tar), any fsspec URI, or sample:. Tars are WebDataset
    shards; with --column, Parquet tables."""
    out: str = "report"
    """Directory or URI for the report, index.html, and its tables; running again goes on where it stopped."""
    codec: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Codec directory or URI, or STORAGE/NAME of a training run, of which every checkpoint is a codec; give it again
    for each other."""
    config: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    open: bool = False
    """Open the page when it is done."""

    def run(self) -> None:
        from pipelines.evaluate.command import open_report, run_evaluation
        from pipelines.train.command import codecs_of

        named = self.codec or self.config.command or self.config.reconstructions or self.config.compressai
        checkpoints = storage.join(storage.absolute(self.out), CHECKPOINTS)
        codecs = [each for codec in self.codec for each in codecs_of(codec, checkpoints)]
        finished = run_evaluation(self.images, self.out, codecs if named else (BUILTIN,), self.config)
        if self.open:
            open_report(finished.report)


Commands = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[CutShards, tyro.conf.subcommand("shard")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Compress, tyro.conf.subcommand("compress")]
    | Annotated[Decompress, tyro.conf.subcommand("decompress")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Stats, tyro.conf.subcommand("stats")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Metrics, tyro.conf.subcommand("metrics")]
)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] and arguments[0] in ON_CLUSTERS:
        return guarded(_need_ray) or _run_cluster_command(*arguments)
    return run_program(Commands, "corrdiff", DESCRIPTION, arguments)


def _need_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError(name="ray")


def _run_cluster_command(name: str, *arguments: str) -> int:
    """A command of the cluster package, in a process of its own; Ctrl-C is for that to answer."""
    process = subprocess.Popen([sys.executable, "-m", f"cluster.{name}", *arguments])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def console() -> None:
    """Entry point of the installed program."""
    sys.exit(main())
