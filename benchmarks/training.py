"""What does an hour on two cores buy? PSNR at 0.3 bpp on held-out crops over the minutes of training.

Two runs of `corrdiff train phase1` on the same shards, each as long as the other by its own step times:

    now      lapped transforms, slices, three stretches: what the preset is
    before   the shape of the first codecs, convolutions alone and no context, all networks together from the first step

Minutes are those of steps and their data, without the measurements in between. Files are real, at fidelity 1; the
rate in question lies between two quality levels, and is interpolated in the logarithm.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.measure import Row, metric_history, parser, report
from corrdiff import metrics
from corrdiff.codec import Settings
from corrdiff.codec_directory import load_codec, save_codec
from corrdiff.config import QUALITIES, CodecConfig, DenoiserConfig, TransformConfig
from corrdiff.networks.model import CorrDiffModel
from pipelines.display import curves
from pipelines.shards.format import VALIDATION, read_manifest
from pipelines.train import validation
from pipelines.train.config import TrainConfig
from pipelines.train.crops import Crops
from pipelines.train.phases.phase1 import SCORE, TOGETHER, TRANSFORMS

BPP = 0.3
PROBE_STEPS = 60
"""By which a stretch's step time is measured; the first third does not count."""
STRETCHES = (TRANSFORMS, SCORE, TOGETHER)


class Contestant(NamedTuple):
    """How a run is started."""

    name: str
    first_shape: bool
    shares: tuple[float, float]
    """Of the transforms and of the score network; the rest is for all together."""


class Point(NamedTuple):
    """What a run has reached."""

    minutes: float
    crops: int
    psnr_db: float


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--pictures", required=True, help="directory of photographs to train on")
    made.add_argument("--held-out", required=True, help="directory of photographs to measure on")
    made.add_argument(
        "--work", help="where shards and runs lie, kept and gone on with; a temporary directory if absent"
    )
    made.add_argument("--minutes", type=float, default=60.0, help="of training, each")
    made.add_argument("--contestants", nargs="+", choices=["before", "now"], default=["before", "now"])
    made.add_argument("--transforms-share", type=float, default=TrainConfig.transforms_share)
    made.add_argument("--score-share", type=float, default=TrainConfig.score_share)
    made.add_argument("--batch", type=int, default=4)
    made.add_argument("--workers", type=int, default=1)
    made.add_argument("--measurements", type=int, default=6, help="points of each curve")
    made.add_argument("--scales", default="0.7,0.6,0.5,0.42,0.35,0.3,0.25")
    made.add_argument("--reference", default="builtin:tiny", help="trained codec directory to compare with")
    made.add_argument("--curve", type=Path, help="PNG to draw the curves in")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary).absolute()
        work.mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{work}/mlflow.db"
        shards = work / "shards"
        corrdiff("shard", arguments.pictures, shards, "--crop", 192, "--stride", 128, "--scales", arguments.scales,
                 "--pictures-per-shard", 4)  # fmt: skip
        corrdiff("shard", arguments.held_out, shards / VALIDATION, "--crop", 192, "--pictures-per-shard", 4)
        shares = arguments.transforms_share, arguments.score_share
        contestants = {"before": Contestant("before", True, (0.0, 0.0)), "now": Contestant("now", False, shares)}
        found = {name: run(arguments, work, contestants[name]) for name in arguments.contestants}
        reference = of_codec(arguments.reference, shards)
    rows: list[Row] = [
        {"what": name, "minutes": p.minutes, "crops": p.crops, "PSNR dB at 0.3 bpp": p.psnr_db}
        for name, points in found.items()
        for p in points
    ]
    rows.append({"what": arguments.reference, "PSNR dB at 0.3 bpp": reference})
    report(f"{os.cpu_count()} cores, {arguments.workers} workers, batch {arguments.batch}, crops of 128", rows,
           arguments.json)  # fmt: skip
    if arguments.curve:
        lines = [
            curves.Line(name, [p.minutes for p in points], [p.psnr_db for p in points], color)
            for (name, points), color in zip(found.items(), curves.OURS, strict=False)
        ]
        last = max(p.minutes for points in found.values() for p in points)
        lines.append(curves.Line(arguments.reference, [0, last], [reference] * 2, "#7f7f7f", dashed=True))
        arguments.curve.write_bytes(curves.png(curves.draw([("minutes", "PSNR dB at 0.3 bpp", lines)])))


def corrdiff(*command: object) -> None:
    subprocess.run([sys.executable, "-m", "pipelines", *map(str, command)], check=True, stdout=sys.stderr)


def run(arguments: argparse.Namespace, work: Path, contestant: Contestant) -> list[Point]:
    """Train for those minutes, as this machine's step times have it, and read what was measured."""
    length = work / f"{contestant.name}.crops"
    if not length.exists():  # a run that goes on has the length that it began with
        length.write_text(str(crops_in(arguments, work, contestant)))
    crops = int(length.read_text())
    train(arguments, work, contestant, contestant.name, crops, contestant.shares, crops // arguments.measurements)
    return curve(contestant.name)


def train(
    arguments: argparse.Namespace, work: Path, contestant: Contestant, name: str, crops: int,
    shares: tuple[float, float], validate_every: int,
) -> None:  # fmt: skip
    start: list[object] = []
    if contestant.first_shape:
        start = ["--init-from", untrained(work)]
    corrdiff(
        "train", "phase1", "--shards", work / "shards", "--storage", work / "runs", "--name", name, *start,
        "--crops-total", crops, "--batch", arguments.batch, "--workers", arguments.workers,
        "--transforms-share", shares[0], "--score-share", shares[1],
        "--validate-every", validate_every, "--checkpoint-every", max(1, crops // 20),
    )  # fmt: skip


def untrained(work: Path) -> Path:
    """Write a codec of the first codecs' shape with weights as they are drawn."""
    directory = work / "first-shape"
    if not (directory / "config.json").exists():
        torch.manual_seed(0)
        model = CorrDiffModel(CodecConfig("tiny", TransformConfig(), DenoiserConfig()))
        save_codec(model, model.entropy.freeze(), str(directory))
    return directory


def crops_in(arguments: argparse.Namespace, work: Path, contestant: Contestant) -> int:
    """Say how many crops a run of those minutes has: its stretches take their shares of crops at their own speed."""
    shares = [*contestant.shares, 1.0 - sum(contestant.shares)]
    only = ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0))
    seconds = 0.0
    for stretch, share, alone in zip(STRETCHES, shares, only, strict=True):
        if share > 0:
            name = f"probe-{contestant.name}-{stretch}"
            total = PROBE_STEPS * arguments.batch
            train(arguments, work, contestant, name, total, alone, 10 * total)
            windows = steps(name)
            rest = windows[len(windows) // 3 :]
            seconds += share * sum(s for s, _ in rest) / sum(crops for _, crops in rest)
    return int(60 * arguments.minutes / seconds)


def steps(name: str) -> list[tuple[float, int]]:
    """Give (seconds, crops) of each window of a run."""
    (windows,) = metric_history(f"{name}-phase1", "crops_per_s")
    return [((seen - before) / rate, seen - before) for (before, _), (seen, rate) in pairwise([(0, 0.0), *windows])]


def curve(name: str) -> list[Point]:
    """Give what was measured of a run, over the time that its steps took until then."""
    windows = steps(name)
    ends = np.cumsum([0, *(crops for _, crops in windows)])
    spent = np.cumsum([0.0, *(seconds for seconds, _ in windows)]) / 60
    keys = [f"q{q}/{metric}" for q in validation.QUALITIES for metric in ("bpp", "psnr_db")]
    found = metric_history(f"{name}-phase1", *(f"val/{key}" for key in keys))
    values = {key: dict(history) for key, history in zip(keys, found, strict=True)}
    points = []
    for crops in sorted(values[f"q{validation.QUALITIES[0]}/bpp"]):
        at = [(values[f"q{q}/bpp"][crops], values[f"q{q}/psnr_db"][crops]) for q in validation.QUALITIES]
        points.append(Point(float(np.interp(crops, ends, spent)), crops, at_rate(at)))
    return points


def of_codec(uri: str, shards: Path) -> float:
    """Measure a trained codec on the same crops."""
    codec = load_codec(uri)
    originals = validation.read_held_out(Crops(str(shards), read_manifest(str(shards)))).crops
    points = []
    for q in range(QUALITIES):
        encoded = [codec.compress_batch([x], Settings(q, fidelity=1.0))[0] for x in originals]
        psnr = [metrics.psnr(x, e.reconstruction) for x, e in zip(originals, encoded, strict=True)]
        points.append((float(np.mean([e.bpp for e in encoded])), float(np.mean(psnr))))
    return at_rate(points)


def at_rate(points: list[tuple[float, float]]) -> float:
    """Interpolate PSNR at the rate in question, linear in the logarithm of the rate; not a number outside."""
    bpp, psnr = zip(*sorted(points), strict=True)
    return float(np.interp(np.log(BPP), np.log(bpp), psnr, left=np.nan, right=np.nan))


if __name__ == "__main__":
    main()
