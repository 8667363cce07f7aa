"""Megapixels a second of `corrdiff compress` against a bare loop over the same pictures with the same codec.

The bare loop is `compress_batch` in one process with all cores, on pictures that lie in memory, and nothing else. Ours
reads and opens files, encodes, reads every file back to its latents, measures quality, and writes parts and records.
Both count from the first quarter of the pictures on, when buffers are full.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Row, again, parser, report, sample
from corrdiff.codec import Settings
from corrdiff.codec_directory import load_codec, save_codec
from corrdiff.config import preset
from corrdiff.images import open_image
from corrdiff.networks.model import CorrDiffModel
from pipelines.compress.chunk import STAGES
from pipelines.compress.config import CompressConfig
from pipelines.dataset.units import finished_units, read_records

SKIPPED = 0.25


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--pictures", type=int, default=48)
    made.add_argument("--width", type=int, default=768)
    made.add_argument("--height", type=int, default=512)
    made.add_argument("--steps", type=int, default=8)
    made.add_argument("--batch", type=int, default=4)
    made.add_argument("--preset", default="tiny")
    made.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    made.add_argument("--codec", help="untrained networks of the preset where it is not given: as fast")
    made.add_argument("--of", choices=["ours", "bare"], help=argparse.SUPPRESS)
    made.add_argument("--root", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.of:
        print(json.dumps(ours(arguments) if arguments.of == "ours" else bare(arguments)))
        return
    with tempfile.TemporaryDirectory() as root:
        write_pictures(Path(root) / "pictures", arguments)
        codec = arguments.codec or untrained(arguments.preset, f"{root}/codec")
        found: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
        for _ in range(arguments.rounds):
            for name, results in found.items():
                options = [f"--{k}={getattr(arguments, k)}" for k in ("steps", "batch", "device")]
                command = again("--of", name, "--root", root, "--codec", codec, *options)
                environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db"}
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
                if done.returncode:
                    raise SystemExit(done.stderr)
                results.append(json.loads(done.stdout.splitlines()[-1]))
        rows: list[Row] = []
        for name, results in found.items():
            row: Row = {"": name, "Mpx/s": statistics.median(r["rate"] for r in results)}
            row |= {f"{s} at work": statistics.median(r[s] for r in results) for s in STAGES if s in results[0]}
            rows.append(row)
        ratio = statistics.median(a["rate"] / b["rate"] for a, b in zip(found["ours"], found["bare"], strict=True))
        rows.append({"": "ours over bare", "Mpx/s": ratio})
        size = f"{arguments.width}x{arguments.height}"
        report(
            f"{arguments.preset}, {arguments.steps} steps, {arguments.pictures} pictures of {size}, {os.cpu_count()} "
            f"cores, medians of {arguments.rounds} rounds in turns; at work: how many at a time, on the mean",
            rows, arguments.json,
        )  # fmt: skip


def untrained(name: str, directory: str) -> str:
    """Write a codec of a preset with weights as they are drawn; returns its directory."""
    torch.manual_seed(0)
    model = CorrDiffModel(preset(name))
    save_codec(model, model.entropy.freeze(), directory)
    return directory


def write_pictures(directory: Path, arguments: argparse.Namespace) -> None:
    directory.mkdir()
    picture = sample(arguments.width, arguments.height)
    for i in range(arguments.pictures):
        Image.fromarray(np.roll(picture, 37 * i, axis=1)).save(directory / f"{i:04d}.jpg", quality=95)


def ours(arguments: argparse.Namespace) -> dict[str, float]:
    from pipelines.compress.job import compress_dataset
    from pipelines.runtime.session import ray_session

    out = tempfile.mkdtemp(dir=arguments.root)
    config = CompressConfig(steps=arguments.steps, batch=arguments.batch, device=arguments.device, unit=16)
    pictures: list[tuple[float, int]] = []
    with ray_session():
        for step in compress_dataset(f"{arguments.root}/pictures", out, arguments.codec, config):
            pictures.append((time.perf_counter(), step.done))
    records = list(read_records(out, finished_units(out)))
    megapixels = sum(r.pixels for r in records) / 1e6 / pictures[-1][1]  # all are of one size
    points = [(when, done * megapixels) for when, done in pictures]
    a_megapixel = {stage: sum(r.seconds[stage] for r in records) / points[-1][1] for stage in STAGES}
    return {"rate": rate(points), **{stage: seconds * rate(points) for stage, seconds in a_megapixel.items()}}


def bare(arguments: argparse.Namespace) -> dict[str, float]:
    codec = load_codec(arguments.codec, "cuda" if arguments.device == "cuda" else "cpu")
    files = sorted(Path(f"{arguments.root}/pictures").iterdir())
    pictures = [open_image(file.read_bytes()).pixels for file in files]
    settings = Settings(steps=arguments.steps)
    points = [(time.perf_counter(), 0.0)]
    for start in range(0, len(pictures), arguments.batch):
        batch = pictures[start : start + arguments.batch]
        codec.compress_batch(batch, settings)
        points.append((time.perf_counter(), points[-1][1] + sum(p.shape[0] * p.shape[1] for p in batch) / 1e6))
    return {"rate": rate(points)}


def rate(points: list[tuple[float, float]]) -> float:
    """Megapixels a second after the first quarter."""
    begin = next(point for point in points if point[1] >= SKIPPED * points[-1][1])
    return (points[-1][1] - begin[1]) / (points[-1][0] - begin[0])


if __name__ == "__main__":
    main()
