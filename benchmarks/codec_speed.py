"""Encode and decode time against the bare networks.

The peer is the networks alone: D once and the score network S times on tensors that are ready. What the codec adds is
the analysis, entropy coding, noise, fitting and applying factors. Prints one table; `--json FILE` writes it too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from corrdiff import metrics
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.config import PRESETS, preset
from corrdiff.images import open_image
from corrdiff.model import CorrDiffModel
from pipelines import pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = CorrDiffModel(preset(arguments.preset))
    image = open_image(pictures.read(pictures.list_pictures("sample:coffee")[0])).pixels[:384, :576]
    megapixels = image.shape[0] * image.shape[1] / 1e6
    rows = []
    for precision in ("fp32", "bf16"):
        codec = CorrDiffCodec(model, model.entropy.freeze(), bytes(8), arguments.device, precision)
        data = codec.compress(image, steps=arguments.steps)
        times = interleaved(
            {
                "networks": networks_alone(codec, image.shape[0], image.shape[1], arguments.steps),
                "encode": lambda c=codec: c.compress_batch([image], Settings(steps=arguments.steps)),
                "decode": lambda c=codec, d=data: c.decompress(d),
            },
            arguments.rounds,
        )
        for name, seconds in times.items():
            ratio = statistics.median(a / b for a, b in zip(seconds, times["networks"], strict=True))
            rows.append(
                {
                    "precision": precision,
                    "what": name,
                    "s_per_megapixel": round(statistics.median(seconds) / megapixels, 3),
                    "ratio_to_networks": round(ratio, 3),
                }
            )
    print(f"{arguments.preset} on {arguments.device}, {image.shape[1]}x{image.shape[0]}, {arguments.steps} steps, "
          f"{torch.get_num_threads()} threads, medians of {arguments.rounds} interleaved rounds, "
          f"{metrics.bits_per_pixel(len(data), *image.shape[:2]):.2f} bpp (untrained)")  # fmt: skip
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


@torch.inference_mode()
def networks_alone(codec: CorrDiffCodec, height: int, width: int, steps: int) -> Callable[[], object]:
    """D, the context network and S evaluations of the score network, nothing else."""
    h, w = -(-height // 64) * 64, -(-width // 64) * 64
    x = torch.rand(1, 3, h, w, device=codec.device).contiguous(memory_format=torch.channels_last)
    y = torch.randn(1, codec.config.transform.latent_channels, h // 16, w // 16, device=codec.device)
    t = torch.full((1,), 0.5, device=codec.device)

    @torch.inference_mode()
    def run() -> None:
        with codec._autocast():
            codec.model.decoder(y)
            context = codec.model.context(y)
            for _ in range(steps):
                codec.model.denoiser(x, context, t)
        if codec.device.type == "cuda":
            torch.cuda.synchronize()

    return run


def interleaved(actions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each action, one after the other in each round, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for i in range(rounds + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if i:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def print_table(rows: list[dict[str, Any]]) -> None:
    widths = {key: max(len(key), *(len(str(row[key])) for row in rows)) for key in rows[0]}
    print("  ".join(key.ljust(width) for key, width in widths.items()))
    for row in rows:
        print("  ".join(str(row[key]).ljust(width) for key, width in widths.items()))


if __name__ == "__main__":
    main()
