"""What a run's schedules are at a given crop: the learning rate, the warm-up, and how many steps are left."""

from __future__ import annotations

import math

from pipelines.shards.format import Manifest
from pipelines.train import epoch_order
from pipelines.train.config import TrainConfig
from pipelines.train.epoch_order import Cursor

WARMUP_LR_SHARE = 0.1
DECAY_FROM_SHARE = 0.4
FINAL_LR_SHARE = 0.03


def lr_at(config: TrainConfig, crops_seen: int) -> float:
    """Give the learning rate: linear warm-up, plateau, cosine decay; all in crops."""
    share = crops_seen / config.crops_total
    if share < WARMUP_LR_SHARE:
        return config.lr * share / WARMUP_LR_SHARE
    decay = max(0.0, (share - DECAY_FROM_SHARE) / (1 - DECAY_FROM_SHARE))
    return config.lr * (FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * 0.5 * (1 + math.cos(math.pi * min(decay, 1.0))))


def warmup_at(config: TrainConfig, crops_seen: int) -> float:
    """Give the share of the warm-up that is done, at most 1."""
    length = config.warmup_share * config.crops_total
    return min(1.0, crops_seen / length) if length > 0 else 1.0


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
