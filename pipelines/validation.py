"""How good the codec is while it trains: real files of held-out crops, each worker a part of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from corrdiff import metrics
from corrdiff.codec import CorrDiffCodec, Picture, Settings
from pipelines import curves, png, storage
from pipelines.report import Panel
from pipelines.shards import VALIDATION, has_validation, read_crops, read_manifest

QUALITIES = (1, 4, 7)
CROPS = 24
PICTURES = 3
"""Crops that are shown."""

BATCH = 4


class HeldOut(NamedTuple):
    """The crops that are measured, the same each time."""

    name: str
    """`val`, or `train_crops` where the shards hold nothing out."""
    crops: list[Picture]


def read_held_out(shards: str) -> HeldOut:
    """The first crops of each of the first held-out shards, else of a training shard."""
    name = "val" if has_validation(shards) else "train_crops"
    uri = storage.join(shards, VALIDATION) if name == "val" else shards
    chosen = read_manifest(uri).shards[: CROPS if name == "val" else 1]
    each = -(-CROPS // len(chosen))
    files = [data for shard in chosen for data in read_crops(uri, shard, 0, min(each, shard.count))]
    return HeldOut(name, [png.decode(data) for data in files[:CROPS]])


def measure(
    codec: CorrDiffCodec, held_out: HeldOut, lpips: torch.nn.Module | None
) -> tuple[dict[str, float], list[list[Panel]]]:
    """Means over all crops of rate and quality at several quality levels, and rows of pictures; collective.

    The metrics are of the corrected picture at fidelity 1, with `_decoder` of D alone and `_uncorrected` of the score
    network alone. What cannot be computed is absent.
    """
    mine = held_out.crops[dist.get_rank() :: dist.get_world_size()]
    sums: dict[str, float] = {}
    rows: list[list[Panel]] = [[] for _ in mine[:PICTURES]]
    for q in QUALITIES:
        for start in range(0, len(mine), BATCH):
            originals = mine[start : start + BATCH]
            encoded = codec.compress_batch(originals, Settings(quality=q, fidelity=1.0))
            files = [e.data for e in encoded]
            decoded = {
                "": codec.decompress_batch(files),
                "_decoder": codec.decompress_batch(files, "privileged"),
                "_uncorrected": codec.decompress_batch(files, "uncorrected"),
            }
            for i, original in enumerate(originals):
                values = {"bpp": encoded[i].bpp}
                for kind, pictures in decoded.items():
                    values |= {f"{k}{kind}": v for k, v in _quality(original, pictures[i], lpips).items()}
                for key, value in values.items():
                    sums[f"{held_out.name}/q{q}/{key}"] = sums.get(f"{held_out.name}/q{q}/{key}", 0.0) + value
                if start + i < PICTURES:
                    rows[start + i] += [
                        Panel(f"original, q{q}", original), Panel("D", decoded["_decoder"][i]),
                        Panel("uncorrected", decoded["_uncorrected"][i]),
                        Panel(f"{encoded[i].bpp:.2f} bpp", decoded[""][i]),
                    ]  # fmt: skip
    gathered: list[dict[str, float]] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, sums)
    names = {name for each in gathered for name in each}
    return {n: sum(each.get(n, 0.0) for each in gathered) / len(held_out.crops) for n in sorted(names)}, rows


def draw(history: Sequence[Mapping[str, float]]) -> bytes:
    """Rate-distortion curves of what `measure` found, the newest over the earlier ones -> a PNG."""
    kinds = {"": "fidelity 1", "_decoder": "D alone", "_uncorrected": "uncorrected"}
    panels: list[tuple[str, str, list[curves.Line]]] = []
    for metric in ("psnr_db", "ms_ssim", "texture_error", "lpips"):
        lines: list[curves.Line] = []
        for i, values in enumerate(history):
            for (kind, name), color in zip(kinds.items(), curves.OURS, strict=False):
                points = [_point(values, q, f"{metric}{kind}") for q in QUALITIES]
                known = [p for p in points if p is not None]
                if known:
                    faint = i < len(history) - 1
                    lines.append(curves.Line(name, [p[0] for p in known], [p[1] for p in known], color, faint=faint))
        if lines:
            panels.append(("bpp", metric, lines))
    return curves.png(curves.draw(panels))


def _point(values: Mapping[str, float], quality: int, metric: str) -> tuple[float, float] | None:
    """Rate and a metric of one quality level."""
    found = {key.partition("/")[2]: value for key, value in values.items()}
    bpp, value = found.get(f"q{quality}/bpp"), found.get(f"q{quality}/{metric}")
    if bpp is None or value is None:
        return None
    return bpp, float(metrics.ms_ssim_db(np.array(value))) if metric.startswith("ms_ssim") else value


def _quality(original: Picture, picture: Picture, lpips: torch.nn.Module | None) -> dict[str, float]:
    values = {
        "psnr_db": min(metrics.psnr(original, picture), 100.0),
        "ms_ssim": metrics.ms_ssim(original, picture),
        "texture_error": metrics.texture_error(original, picture),
        "lpips": metrics.lpips_distance(original, picture, lpips) if lpips is not None else None,
    }
    return {name: value for name, value in values.items() if value is not None}
