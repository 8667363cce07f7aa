"""How good the codec is while it trains: real files of held-out crops, each worker a part of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from corrdiff import metrics
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.picture import Picture
from pipelines.display import curves
from pipelines.display.contact_sheet import Panel
from pipelines.files import storage
from pipelines.shards import crop_png
from pipelines.shards.format import VALIDATION, has_validation, read_crops, read_manifest

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
    return HeldOut(name, [crop_png.decode(data) for data in files[:CROPS]])


def measure(
    codec: CorrDiffCodec, held_out: HeldOut, lpips: torch.nn.Module | None
) -> tuple[dict[str, float], list[list[Panel]]]:
    """Means over all crops of rate and quality at several quality levels, and rows of pictures; collective.

    The metrics are of the corrected picture at fidelity 1, with `_decoder` of D alone and `_uncorrected` of the score
    network alone. What cannot be computed of every crop is absent.
    """
    mine = held_out.crops[dist.get_rank() :: dist.get_world_size()]
    found: dict[str, list[float | None]] = {}
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
                values: dict[str, float | None] = {"bpp": encoded[i].bpp}
                for kind, pictures in decoded.items():
                    of_kind = metrics.quality(original, pictures[i], lpips, metrics.DATASET_METRICS)
                    values |= {f"{name}{kind}": value for name, value in of_kind.items()}
                for name, value in values.items():
                    found.setdefault(f"{held_out.name}/q{q}/{name}", []).append(value)
                if start + i < PICTURES:
                    rows[start + i] += [
                        Panel(f"original, q{q}", original), Panel("D", decoded["_decoder"][i]),
                        Panel("uncorrected", decoded["_uncorrected"][i]),
                        Panel(f"{encoded[i].bpp:.2f} bpp", decoded[""][i]),
                    ]  # fmt: skip
    gathered: list[dict[str, list[float | None]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, found)
    means: dict[str, float] = {}
    for name in sorted({name for each in gathered for name in each}):
        every = [value for each in gathered for value in each.get(name, [])]
        known = [value for value in every if value is not None]
        if len(known) == len(held_out.crops):
            means[name] = sum(known) / len(known)
    return means, rows


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
