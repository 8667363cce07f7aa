"""What a run's schedules are at a given crop: its stretch, the learning rate, and how many steps are left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.shards.format import Manifest
from pipelines.train import epoch_order
from pipelines.train.config import TrainConfig
from pipelines.train.epoch_order import Cursor
from pipelines.train.samples import Noise

RISE_SHARE = 0.1
DECAY_FROM_SHARE = 0.4
FINAL_LR_SHARE = 0.03
"""Within a stretch the learning rate rises to its peak, stays there, and falls to this share of it: what stands still
in the next stretch has come to rest, and its weights are near their average."""


class Stretch(NamedTuple):
    """A part of a run, in which some of the weights move and the others do not."""

    name: str
    share: float
    """Of the run's crops."""
    peaks: dict[str, float]
    """The peak learning rate of each group of weights, over the run's; groups that are not named stand still: neither
    the weights nor their averages change, to the bit."""
    terms: tuple[str, ...]
    """Names of the loss terms that are computed; curves leave out the others."""
    noise: tuple[Noise, ...]
    """The noise that they depend on; nothing else is drawn."""


class Place(NamedTuple):
    """Where a step is in a run: the stretch in which it begins."""

    stretch: Stretch
    begin: float
    """Crops that were seen when the stretch began."""
    crops: float
    """Length of the stretch in crops."""

    def share(self, crops_seen: int) -> float:
        """Give the share of the stretch that is done then, at most 1."""
        return min(1.0, (crops_seen - self.begin) / self.crops)


def place_at(config: TrainConfig, stretches: Sequence[Stretch], crops_seen: int) -> Place:
    """Find the stretch of a step that begins after `crops_seen`; those of no length are none."""
    present = [stretch for stretch in stretches if stretch.share > 0]
    begin = 0.0
    for stretch in present:
        crops = stretch.share * config.crops_total
        if crops_seen < begin + crops or stretch is present[-1]:
            return Place(stretch, begin, crops)
        begin += crops
    raise ValueError("a run has no stretch of any length")


def lr_at(config: TrainConfig, share: float) -> float:
    """Give the learning rate at that share of a stretch: linear rise, plateau, cosine decay."""
    if share < RISE_SHARE:
        return config.lr * share / RISE_SHARE
    decay = max(0.0, (share - DECAY_FROM_SHARE) / (1 - DECAY_FROM_SHARE))
    return config.lr * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * decay)))


def steps_left(config: TrainConfig, manifest: Manifest, crops_seen: int, cursor: Cursor) -> int:
    """Count the steps until `crops_total` crops are seen; the last step of an epoch has fewer crops than the others."""
    epoch_steps = epoch_order.steps_per_epoch(manifest, config.batch)
    left = config.crops_total - crops_seen
    rest_of_epoch = manifest.count - min(manifest.count, cursor.step * config.batch)
    if left <= rest_of_epoch:
        return max(0, -(-left // config.batch))
    left -= rest_of_epoch
    steps = epoch_steps - cursor.step
    return steps + left // manifest.count * epoch_steps + -(-(left % manifest.count) // config.batch)
