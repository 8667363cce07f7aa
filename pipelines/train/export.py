"""Checkpoint -> codec directory: averaged weights and, from phase 1, newly frozen entropy tables."""

from __future__ import annotations

import dataclasses

from corrdiff.codec_directory import save_codec
from corrdiff.config import Correction
from corrdiff.errors import UsageError
from pipelines.files import storage
from pipelines.tracking.tracker import recorded_run
from pipelines.train import checkpoints
from pipelines.train.phases.base import provenance
from pipelines.train.phases.table import PHASES
from pipelines.train.run_directory import CHECKPOINTS, RUN_FILE, START_CODEC, has_codec, read_run


def export(
    run: str, out: str, compact: bool = False, correction: Correction | None = None, overwrite: bool = False
) -> str:
    """Export the newest checkpoint of a run; returns the codec's fingerprint.

    Args:
        run: STORAGE/NAME (its last phase that has a checkpoint), or one phase of it, say STORAGE/NAME/phase1.
        out: the codec directory to write.
        compact: write weights of 8 bits.
        correction: how the codec corrects its process; as it is configured where it is not given.
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
            return _export_checkpoint(root, newest, storage.absolute(out), compact, correction, overwrite)
    looked = " and ".join(f"{phase}/" for phase in phases)
    raise UsageError(f"no finished checkpoint under {run} (looked in {CHECKPOINTS}/, {looked})")


def is_run(uri: str) -> bool:
    """Say whether a directory is that of a training run, or of one of its phases."""
    uri = storage.absolute(uri)
    return any(storage.exists(storage.join(uri, *inner, RUN_FILE)) for inner in ((), *((phase,) for phase in PHASES)))


def export_all(run: str, out: str) -> list[str]:
    """Export every checkpoint that a run has kept, phase by phase, the oldest first; what `out` has is kept.

    Args:
        run: STORAGE/NAME, or one phase of it.
        out: directory for the codecs, OUT/PHASE/CHECKPOINT.

    Raises:
        UsageError: there is no checkpoint, or run.json beside it is missing, damaged or of another version.
        JobError: a checkpoint is damaged.
    """
    run, out = storage.absolute(run), storage.absolute(out)
    found: list[str] = []
    for root in [run, *(storage.join(run, phase) for phase in PHASES)]:
        for checkpoint in reversed(checkpoints.finished(storage.join(root, CHECKPOINTS))):
            codec = storage.join(out, read_run(root).phase, checkpoint.rpartition("/")[2])
            if not has_codec(codec):
                _export_checkpoint(root, checkpoint, codec, compact=False, correction=None, overwrite=False)
            found.append(codec)
    if not found:
        raise UsageError(f"no finished checkpoint under {run}")
    return found


def _export_checkpoint(
    root: str, checkpoint: str, out: str, compact: bool, correction: Correction | None, overwrite: bool
) -> str:
    """Write the codec of a checkpoint under RUN/PHASE; returns its fingerprint."""
    record = read_run(root)
    phase, config = PHASES[record.phase], record.config
    if phase.follows is not None:
        config = dataclasses.replace(config, init_from=storage.join(root, START_CODEC))
    restored = checkpoints.load(checkpoint)
    model, tables = phase.codec(config, restored.tensors["ema"])
    if correction is not None:
        diffusion = model.config.diffusion.corrected_by(correction)
        model.config = dataclasses.replace(model.config, diffusion=diffusion)
    known = provenance(phase, config, restored.progress.crops_seen, recorded_run(root))
    return save_codec(model, tables, out, known, compact, overwrite)
