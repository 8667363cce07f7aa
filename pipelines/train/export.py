"""Checkpoint -> codec directory: averaged weights and, from phase 1, newly frozen entropy tables."""

from __future__ import annotations

import dataclasses

from corrdiff.codec_directory import save_codec
from corrdiff.errors import UsageError
from pipelines.files import storage
from pipelines.tracking.tracker import recorded_run
from pipelines.train import checkpoints
from pipelines.train.phases.base import provenance
from pipelines.train.phases.table import PHASES
from pipelines.train.run_directory import CHECKPOINTS, START_CODEC, read_run


def export(run: str, out: str, compact: bool = False, overwrite: bool = False) -> str:
    """Export the newest checkpoint of a run; returns the codec's fingerprint.

    Args:
        run: STORAGE/NAME (its last phase that has a checkpoint), or one phase of it, say STORAGE/NAME/phase1.
        out: the codec directory to write.
        compact: write weights of 8 bits.
        overwrite: write over another codec; what it wrote can then be read with a copy of it alone.

    Raises:
        UsageError: there is no checkpoint, run.json beside it is missing, damaged or of another version, or `out` holds
            another codec.
        JobError: the checkpoint is damaged.
    """
    run = storage.absolute(run)
    phases = list(reversed(PHASES))
    for root in [run, *(storage.join(run, phase) for phase in phases)]:
        newest = checkpoints.latest(storage.join(root, CHECKPOINTS))
        if newest is not None:
            return _export_checkpoint(root, newest, storage.absolute(out), compact, overwrite)
    looked = " and ".join(f"{phase}/" for phase in phases)
    raise UsageError(f"no finished checkpoint under {run} (looked in {CHECKPOINTS}/, {looked})")


def _export_checkpoint(root: str, checkpoint: str, out: str, compact: bool, overwrite: bool) -> str:
    """Write the codec of a checkpoint under RUN/PHASE; returns its fingerprint."""
    record = read_run(root)
    phase, config = PHASES[record.phase], record.config
    if phase.follows is not None:
        config = dataclasses.replace(config, init_from=storage.join(root, START_CODEC))
    restored = checkpoints.load(checkpoint)
    model, tables = phase.codec(config, restored.tensors["ema"])
    known = provenance(phase, config, restored.progress.crops_seen, recorded_run(root))
    return save_codec(model, tables, out, known, compact, overwrite)
