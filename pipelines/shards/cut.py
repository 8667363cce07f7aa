"""Which pictures make which shard, where their crops are, and the bytes of a shard: the same for the same arguments."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from corrdiff.images import ImageError, open_image, save_png
from corrdiff.picture import Picture
from pipelines.files.tar import add_member
from pipelines.inputs.sources import Source
from pipelines.shards.config import ShardConfig
from pipelines.shards.format import Index, Shard

Split = Literal["train", "val"]


@dataclass(frozen=True)  # Ray Data would take a tuple apart
class Group:
    """The pictures of one shard."""

    split: Split
    number: int
    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        """Unique among the groups of one job."""
        return f"{self.split}-{self.number:05d}"

    @property
    def shard_name(self) -> str:
        """The name of its shard, in the directory of its split."""
        return f"shard-{self.number:05d}.tar"


class Cut(NamedTuple):
    """The crops of a group of pictures, as files."""

    shard: Shard
    tar_data: bytes
    index_data: bytes
    skipped: tuple[tuple[str, str], ...]
    """Pictures that gave no crops: URI and reason."""
    flat: int
    """Crops that were left out because next to nothing is in them."""


def plan_groups(sources: Sequence[Source], config: ShardConfig) -> list[Group]:
    """Decide which pictures make which shard: shuffled by the seed, the held-out ones first, dealt in runs."""
    order = np.random.default_rng(config.seed).permutation(len(sources))
    shuffled = tuple(sources[i] for i in order)
    held_out = int(np.ceil(config.val_fraction * len(sources)))
    parts: dict[Split, tuple[Source, ...]] = {"val": shuffled[:held_out], "train": shuffled[held_out:]}
    n = config.pictures_per_shard
    return [Group(split, i // n, part[i : i + n]) for split, part in parts.items() for i in range(0, len(part), n)]


def crop_positions(size: int, crop: int, stride: int) -> list[int]:
    """Where crops start along one axis: evenly spread from border to border, at most `stride` apart.

    `size`, `crop` and `stride` are in pixels; no crop fits where `size` is below `crop`.
    """
    if size < crop:
        return []
    count = -(-(size - crop) // stride) + 1
    return [round(i * (size - crop) / max(count - 1, 1)) for i in range(count)]


def detail(pixels: Picture) -> float:
    """Mean absolute difference of neighbouring pixels, in 8-bit levels: near 0 for sky, borders and blanks."""
    signed = pixels.astype(np.int16)
    return float((np.abs(np.diff(signed, axis=0)).mean() + np.abs(np.diff(signed, axis=1)).mean()) / 2)


def cut_group(group: Group, read: Callable[[Source], bytes], config: ShardConfig) -> Cut:
    """Cut the pictures of one shard, one picture in memory at a time.

    `read` gives the bytes of a picture; where it raises `OSError` the picture is skipped, as one is that cannot be
    opened or is smaller than a crop.
    """
    named = Shard(group.shard_name, 0, 0, "", "")
    offsets: list[int] = []
    sizes: list[int] = []
    digests, skipped, flat = [], [], 0
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for source in group.sources:
            try:
                pixels = open_image(read(source)).pixels
            except (ImageError, OSError) as error:
                skipped.append((source.uri, str(error)))
                continue
            places = list(_places(pixels, config))
            if not places:
                height, width = pixels.shape[:2]
                skipped.append((source.uri, f"{width}x{height} is smaller than the crop"))
            for where, crop in places:
                if detail(crop) < config.min_detail:
                    flat += 1
                    continue
                key, png = named.key(len(sizes)), save_png(crop)
                add_member(tar, f"{key}.json", json.dumps({"source": source.uri, **where}).encode())
                offsets.append(add_member(tar, f"{key}.png", png))
                sizes.append(len(png))
                digests.append(np.frombuffer(hashlib.sha256(png).digest(), np.uint8))
    data = buffer.getvalue()
    digest_n32 = np.array(digests, np.uint8).reshape(-1, 32)
    index = Index(np.array(offsets, np.int64), np.array(sizes, np.int64), digest_n32).to_bytes()
    shard = Shard(named.name, len(sizes), len(data), _sha256(data), _sha256(index))
    return Cut(shard, data, index, tuple(skipped), flat)


def _places(pixels: Picture, config: ShardConfig) -> Iterator[tuple[dict[str, float], Picture]]:
    """Yield each crop of a picture at all scales, and where it is."""
    stride = config.stride or config.crop
    for scale in config.each_scale:
        scaled = _scaled(pixels, scale)
        height, width = scaled.shape[:2]
        for y in crop_positions(height, config.crop, stride):
            for x in crop_positions(width, config.crop, stride):
                where: dict[str, float] = {"y": y, "x": x} if scale == 1 else {"y": y, "x": x, "scale": scale}
                yield where, np.ascontiguousarray(scaled[y : y + config.crop, x : x + config.crop])


def _scaled(pixels: Picture, scale: float) -> Picture:
    """Reduce a picture by Lanczos' filter."""
    if scale == 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
