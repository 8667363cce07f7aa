"""How good the codec is while it trains: real files of held-out crops, each worker a part of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch.distributed as dist

from corrdiff import metrics
from corrdiff.codec import CorrDiffCodec, Decoding, Settings
from corrdiff.metrics import Metric
from corrdiff.picture import Picture
from pipelines.display import curves
from pipelines.display.contact_sheet import Panel
from pipelines.files import storage
from pipelines.shards.format import VALIDATION, has_validation, read_manifest
from pipelines.train.crops import Crops, read_some

QUALITIES = (1, 4, 7)
CROPS = 24
"""Crops that are measured, over all workers."""

PICTURES = 3
"""Crops of the first worker that are shown."""

BATCH = 4
"""Crops that a worker encodes at once."""

DECODINGS: dict[str, tuple[Decoding, str]] = {
    "": ("corrected", "fidelity 1"), "_decoder": ("privileged", "D alone"),
    "_uncorrected": ("uncorrected", "uncorrected"),
}  # fmt: skip
"""What is decoded of a file: the end of its metrics' names -> how, and what curves call it."""

Found = dict[str, list[float | None]]
"""Values of each metric, one for each crop."""


class HeldOut(NamedTuple):
    """The crops that are measured; they are the same each time."""

    name: str
    """`val`, or `train_crops` where the shards hold nothing out."""
    crops: list[Picture]


def read_held_out(crops: Crops) -> HeldOut:
    """Read the first crops of each of the first held-out shards, else of a training shard."""
    if crops.codec or not has_validation(crops.uri):
        return HeldOut("train_crops", read_some(crops, crops.manifest.shards[:1], CROPS)[:CROPS])
    uri = storage.join(crops.uri, VALIDATION)
    held_out = Crops(uri, read_manifest(uri))
    return HeldOut("val", read_some(held_out, held_out.manifest.shards[:CROPS], CROPS)[:CROPS])


def measure(
    codec: CorrDiffCodec, held_out: HeldOut, networks: metrics.Networks
) -> tuple[dict[str, float], list[list[Panel]]]:
    """Measure rate and quality at several quality levels, as means over all crops, with rows of pictures; collective.

    The metrics are of the corrected picture at fidelity 1, with `_decoder` of D alone and `_uncorrected` of the score
    network alone. What cannot be computed of every crop is absent.
    """
    mine = held_out.crops[dist.get_rank() :: dist.get_world_size()]
    found: Found = {}
    rows: list[list[Panel]] = [[] for _ in mine[:PICTURES]]
    for q in QUALITIES:
        for start in range(0, len(mine), BATCH):
            originals = mine[start : start + BATCH]
            encoded = codec.compress_batch(originals, Settings(quality=q, fidelity=1.0))
            files = [e.data for e in encoded]
            decoded = {"": [e.reconstruction for e in encoded]}  # the encoder's own run of the decoder, as it ends
            for kind, (how, _) in DECODINGS.items():
                if kind not in decoded:
                    decoded[kind] = codec.decompress_batch(files, how)
            for i, original in enumerate(originals):
                pictures = {kind: batch[i] for kind, batch in decoded.items()}
                values = {"bpp": encoded[i].bpp} | _quality(original, pictures, networks)
                for name, value in values.items():
                    found.setdefault(f"{held_out.name}/q{q}/{name}", []).append(value)
                if start + i < PICTURES:
                    rows[start + i] += _panels(original, pictures, q, encoded[i].bpp)
    return _means(found, len(held_out.crops)), rows


def _quality(original: Picture, pictures: dict[str, Picture], networks: metrics.Networks) -> dict[str, float | None]:
    """Measure one crop in all its decodings."""
    return {
        f"{name}{kind}": value
        for kind, picture in pictures.items()
        for name, value in metrics.quality(original, picture, networks, metrics.DATASET_METRICS).items()
    }


def _panels(original: Picture, pictures: dict[str, Picture], quality: int, bpp: float) -> list[Panel]:
    return [
        Panel(f"original, q{quality}", original), Panel("D", pictures["_decoder"]),
        Panel("uncorrected", pictures["_uncorrected"]), Panel(f"{bpp:.2f} bpp", pictures[""]),
    ]  # fmt: skip


def _means(found: Found, crops: int) -> dict[str, float]:
    """Join what all workers found, and average what is known of every crop; collective."""
    gathered: list[Found] = [{}] * dist.get_world_size()
    dist.all_gather_object(gathered, found)
    means: dict[str, float] = {}
    for name in sorted({name for each in gathered for name in each}):
        every = [value for each in gathered for value in each.get(name, [])]
        known = [value for value in every if value is not None]
        if len(known) == crops:
            means[name] = sum(known) / len(known)
    return means


def draw(history: Sequence[Mapping[str, float]]) -> bytes:
    """Draw the rate-distortion curves of what `measure` found, the newest over the earlier ones -> a PNG."""
    panels: list[tuple[str, str, list[curves.Line]]] = []
    for metric in metrics.DATASET_METRICS:
        lines: list[curves.Line] = []
        for i, values in enumerate(history):
            for (kind, (_, name)), color in zip(DECODINGS.items(), curves.OURS, strict=False):
                points = [_point(values, q, metric, kind) for q in QUALITIES]
                known = [p for p in points if p is not None]
                if known:
                    faint = i < len(history) - 1
                    lines.append(curves.Line(name, [p[0] for p in known], [p[1] for p in known], color, faint=faint))
        if lines:
            panels.append(("bpp", metric.name, lines))
    return curves.png(curves.draw(panels))


def _point(values: Mapping[str, float], quality: int, metric: Metric, kind: str) -> tuple[float, float] | None:
    """Find a point of a curve: rate, and a metric as axes show it; None where one of them was not measured."""
    found = {key.partition("/")[2]: value for key, value in values.items()}
    bpp, value = found.get(f"q{quality}/bpp"), found.get(f"q{quality}/{metric.name}{kind}")
    if bpp is None or value is None:
        return None
    return bpp, float(metric.on_axis(np.array(value))) if metric.on_axis else value
