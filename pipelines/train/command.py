"""`corrdiff train` and `corrdiff export` as a person types and sees them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from corrdiff.config import Correction
from corrdiff.errors import UsageError
from pipelines.display.progress import console
from pipelines.files import storage
from pipelines.files.records import claim
from pipelines.runtime.session import ray_session
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.costs import Costs


def run_phase(config: TrainConfig, name: PhaseName) -> str:
    """Train one phase with a progress display; returns the codec's URI.

    A phase that goes on from another's codec starts from `init_from`, else from that phase of the run of the same name.
    """
    config = _with_start(config, name)
    with _session(config):
        from pipelines.train.job import train

        trained = train(config, name)
        if trained.was_finished:
            console.print(f"{name} of run '{config.name}' is finished: {trained.codec}")
        else:
            console.print(f"{name}: {_summary(trained.costs)}")
            console.print(f"{name}: codec {trained.codec}")
        return trained.codec


def run_all(config: TrainConfig, phase2_crops_total: int | None, phase3_crops_total: int | None) -> str:
    """Train the phases as one job; returns the last codec's URI.

    Phase 2 is a quarter as long as phase 1 where `phase2_crops_total` does not say its length. Without
    `phase3_crops_total` there is no phase 3.
    """
    with _session(config):
        codec = run_phase(config, "phase1")
        length = phase2_crops_total or max(1, config.crops_total // 4)
        codec = run_phase(dataclasses.replace(config, init_from=codec, crops_total=length), "phase2")
        if phase3_crops_total is None:
            return codec
        return run_phase(dataclasses.replace(config, init_from=codec, crops_total=phase3_crops_total), "phase3")


def run_export(run: str, out: str, compact: bool, correction: Correction | None, overwrite: bool) -> None:
    """Export the newest checkpoint of a run and say the codec's fingerprint."""
    from pipelines.train.export import export

    print(f"{out}: codec {export(run, out, compact, correction, overwrite)}")


def codecs_of(codec: str, out: str) -> list[str]:
    """Give a codec as it is, and of a training run the codec of every checkpoint that it has kept, under `out`.

    Raises `UsageError` where `out` has those of another run.
    """
    from pipelines.train.export import export_all, is_run

    if not is_run(codec):
        return [codec]
    run = storage.absolute(codec)
    directory = storage.join(out, run.rpartition("/")[2])
    claim(storage.join(directory, "run.json"), {"identity": {"run": run}}, f"{directory} holds another run's codecs")
    return export_all(run, directory)


def _with_start(config: TrainConfig, name: PhaseName) -> TrainConfig:
    """Say where a phase starts that goes on from the codec of another. Raises `UsageError` where there is none."""
    from pipelines.train.phases.base import title
    from pipelines.train.phases.table import PHASES
    from pipelines.train.run_directory import EXPORTED_CODEC, has_codec

    before = PHASES[name].follows
    if before is None or config.init_from is not None:
        return config
    codec = storage.join(storage.absolute(config.storage), config.name, before, EXPORTED_CODEC)
    if not has_codec(codec):
        raise UsageError(
            f"{title(name)} needs a finished {title(before)}: there is no codec at {codec}; give --init-from CODEC"
        )
    return dataclasses.replace(config, init_from=codec)


@contextlib.contextmanager
def _session(config: TrainConfig) -> Iterator[None]:
    """Have Ray, once it is known that there are shards: what a user gets wrong is said at once."""
    from pipelines.train.crops import open_crops  # it brings torch along

    open_crops(config)
    with ray_session():
        yield


def _summary(costs: Costs | None) -> str:
    """Sum up what a training cost."""
    if costs is None:
        return "nothing was left to train"
    m = costs.metrics()
    use = f", HFU {m['hfu']:.1%}" if "hfu" in m else ""
    return (
        f"{costs.crops:,} crops in {costs.seconds:.0f} s: {m['crops_per_s']:.1f} crops/s, "
        f"{m['crops_per_s_per_worker']:.1f} a worker; {m['waiting_share']:.1%} of the time waiting for data; "
        f"{costs.read_bytes / 1e6:,.1f} MB read; {m['tflops_per_s']:.3f} TFLOP/s{use}; "
        f"peak memory {m['peak_memory_gib']:.2f} GiB a worker"
    )
