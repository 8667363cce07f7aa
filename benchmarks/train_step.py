"""Crops a second of `corrdiff train` against a bare PyTorch loop on crops that lie in memory: same model, same cores.

All networks train together, as in the last stretch of phase 1. Ours is the whole command: Ray Train, DeepSpeed, Ray
Data from shards on disk, schedules, weight average, measurements.
The bare loop is forward, backward, clipping and Adam; with two workers, two processes of DistributedDataParallel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.measure import Row, again, metric_history, parser, report
from corrdiff import heap
from corrdiff.config import QUALITIES, preset
from corrdiff.networks.model import CorrDiffModel
from pipelines.train.deepspeed_config import ADAM_BETAS, ADAM_EPS
from pipelines.train.phases.phase1 import TOGETHER, Phase1Module
from pipelines.train.samples import Sample

LOG_EVERY = 5
SKIPPED_WINDOWS = 2
"""Of `LOG_EVERY` steps, at the start."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--steps", type=int, default=40)
    made.add_argument("--batch", type=int, default=16)
    made.add_argument("--crop", type=int, default=128)
    made.add_argument("--preset", default="tiny")
    made.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    made.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    made.add_argument("--bare-rank", type=int, help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.bare_rank is not None:
        bare_worker(arguments)
        return
    with tempfile.TemporaryDirectory() as root:
        shards = f"{root}/shards"
        corrdiff("shard", "sample:", shards, "--crop", arguments.crop + 64, "--stride", 64, "--pictures-per-shard", 1)
        rows: list[Row] = []
        for workers in arguments.workers:
            found: dict[str, list[float]] = {"ours": [], "bare": []}
            waiting = []
            for i in range(arguments.rounds):
                rate, waited = ours(arguments, shards, f"{root}/{workers}-{i}", workers)
                found["ours"].append(rate)
                waiting.append(waited)
                found["bare"].append(bare(arguments, workers))
            rows.append(
                {
                    "workers": workers,
                    "ours crops/s": statistics.median(found["ours"]),
                    "bare crops/s": statistics.median(found["bare"]),
                    "ours over bare": statistics.median(
                        a / b for a, b in zip(found["ours"], found["bare"], strict=True)
                    ),
                    "waiting for data": f"{statistics.median(waiting):.2%}",
                }
            )
        what = f"{arguments.preset}, {arguments.precision}, crops of {arguments.crop} pixels, batch {arguments.batch}"
        title = f"{what}, {os.cpu_count()} cores, medians of {arguments.rounds} rounds in turns"
        report(title, rows, arguments.json)


def corrdiff(*command: object) -> None:
    subprocess.run([sys.executable, "-m", "pipelines", *map(str, command)], check=True, stdout=subprocess.DEVNULL)


def ours(arguments: argparse.Namespace, shards: str, storage: str, workers: int) -> tuple[float, float]:
    """Crops a second and share of the time waiting, in the windows after the first ones."""
    Path(storage).mkdir()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{storage}/mlflow.db"
    corrdiff(
        "train", "phase1", "--shards", shards, "--storage", storage, "--preset", arguments.preset,
        "--crops-total", arguments.steps * arguments.batch, "--batch", arguments.batch, "--crop", arguments.crop,
        "--precision", arguments.precision, "--workers", workers, "--log-every", LOG_EVERY,
        "--transforms-share", 0, "--score-share", 0,
    )  # fmt: skip
    rates, waits = metric_history("corrdiff-phase1", "crops_per_s", "waiting_share")
    rate, wait = (statistics.median(value for _, value in found[SKIPPED_WINDOWS:]) for found in (rates, waits))
    return rate, wait


def bare(arguments: argparse.Namespace, workers: int) -> float:
    """Crops a second of all processes together."""
    options = ["--steps", arguments.steps, "--batch", arguments.batch, "--crop", arguments.crop, "--preset",
               arguments.preset, "--precision", arguments.precision, "--workers", workers]  # fmt: skip
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571", "WORLD_SIZE": str(workers)}
    processes = [
        subprocess.Popen(
            again(*options, "--bare-rank", rank),
            env={**environment, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True,
        )
        for rank in range(workers)
    ]  # fmt: skip
    printed = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("the bare loop failed")
    return float(json.loads(printed[0].splitlines()[-1]))


def bare_worker(arguments: argparse.Namespace) -> None:
    world_size = int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    heap.keep_freed_memory()
    torch.manual_seed(0)
    config = preset(arguments.preset)
    module: torch.nn.Module = Phase1Module(CorrDiffModel(config), 0.0066)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if world_size > 1:
        dist.init_process_group("gloo")
        module = DistributedDataParallel(module)
    optimizer = torch.optim.Adam(parameters, lr=1e-4, betas=ADAM_BETAS, eps=ADAM_EPS)
    count, crop = arguments.batch // world_size, arguments.crop
    crops = torch.randint(0, 256, (8, count, 3, crop, crop), dtype=torch.uint8)
    seconds = []
    for step in range(arguments.steps):
        started = time.perf_counter()
        x = (crops[step % 8].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        latent = config.transform.latent_channels, crop // 16, crop // 16
        hyper = config.transform.hyper_channels, crop // 64, crop // 64
        sample = Sample(
            x, torch.ones(count), torch.randint(QUALITIES, (count,)), torch.rand(count), torch.randn_like(x),
            torch.rand(count, *latent) - 0.5, torch.rand(count, *hyper) - 0.5,
        )  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
            loss = module(sample, TOGETHER, 1.0)[:, 0].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    print(json.dumps(arguments.batch / statistics.median(seconds[LOG_EVERY * SKIPPED_WINDOWS :])))


if __name__ == "__main__":
    main()
