"""Is a cluster fit for an expensive job? One table, one verdict.

`survey` looks; what it found is judged here by pure functions, a check each.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from cluster.probe import PACKAGES, REDUCED_BYTES, STORAGE_BYTES, Facts, Reduced
from cluster.survey import Wanted, look
from corrdiff.command_line import EXIT_FAILED, EXIT_OK, run_command

GIB = 1 << 30
MIN_SHARED_MEMORY = GIB // 2
"""Chunks of pictures pass from stage to stage in it."""
MIN_SPILL_DISK = 5 * GIB
"""Where Ray puts what its memory has no room for."""
MAX_SKEW_S = 5.0
"""Object storage refuses requests that are minutes off; records of a run are out of order before that."""


@dataclasses.dataclass(frozen=True)
class Preflight:
    """Look at every node of a Ray cluster before an expensive job; 0 where all is well, 1 where something is not.

    Run it where the job will run. Of a cluster that grows by itself it sees the machines that are there: --cpus and
    --gpus ask for more, as a job would, and wait for them.

    Example: corrdiff submit -- preflight --storage s3://bucket/runs --gpus 4
    """

    storage: str | None = None
    """Where the job will write: each node writes, reads and deletes an object there."""
    mlflow: str | None = None
    """The MLflow server; each node's MLFLOW_TRACKING_URI where it is not given."""
    cpus: int | None = None
    """So many processors must be there."""
    gpus: int | None = None
    """So many GPUs must be there."""
    wait: float = 900.0
    """Seconds to wait for them."""


class Check(NamedTuple):
    """One row of the table."""

    name: str
    found: str
    ok: bool | None
    """None: it was not asked for."""


def judge(options: Preflight, nodes: Sequence[Facts], reduced: Reduced) -> list[Check]:
    """Make every check of what was found."""
    return [
        _nodes(options, nodes), *(_version(name, nodes) for name in ("python", *PACKAGES, "cuda")),
        _gpus(options, nodes), _all_reduce(reduced), _storage(options, nodes), _mlflow(nodes), _clock(nodes),
        _shared_memory(nodes), _spill_disk(nodes),
    ]  # fmt: skip


def _nodes(options: Preflight, nodes: Sequence[Facts]) -> Check:
    cpus, memory = sum(n.cpus for n in nodes), sum(n.memory for n in nodes)
    found = f"{len(nodes)}: {cpus:g} CPUs, {memory / GIB:.0f} GiB"
    if options.cpus is not None and cpus < options.cpus:
        return Check("nodes", f"{found}; {options.cpus} CPUs are wanted", False)
    return Check("nodes", found, True)


def _version(name: str, nodes: Sequence[Facts]) -> Check:
    by_version: dict[str, list[str]] = defaultdict(list)
    for n in nodes:
        by_version[n.versions.get(name, "missing")].append(n.node)
    if len(by_version) == 1:
        version = next(iter(by_version))
        return Check(name, version, version != "missing")
    # The most common first, and of two as common that of the later name: Ray lists nodes in any order.
    ordered = sorted(by_version.items(), key=lambda item: (len(item[1]), item[0]), reverse=True)
    return Check(name, "; ".join(f"{version} on {_listed(where)}" for version, where in ordered), False)


def _gpus(options: Preflight, nodes: Sequence[Facts]) -> Check:
    unseen = [
        f"{n.node}: Ray counts {n.gpus_of_ray}, torch sees {len(n.gpus)}" for n in nodes if n.gpus_of_ray > len(n.gpus)
    ]
    if unseen:
        return Check("GPUs", "; ".join(unseen), False)
    broken = [f"{n.node}: {error}" for n in nodes for error in n.broken_gpus]
    if broken:
        return Check("GPUs", _listed(broken), False)
    count = sum(n.gpus_of_ray for n in nodes)
    kinds = sorted({f"{name}, {memory / GIB:.0f} GiB" for n in nodes for name, memory in n.gpus if n.gpus_of_ray})
    found = f"{count}: {'; '.join(kinds)}" if count else "none"
    if options.gpus is not None and count < options.gpus:
        return Check("GPUs", f"{found}; {options.gpus} are wanted", False)
    return Check("GPUs", found, True if count or options.gpus is not None else None)


def _all_reduce(reduced: Reduced) -> Check:
    if reduced.error:
        return Check("all-reduce", f"{reduced.backend}, {reduced.ranks} ranks: {reduced.error}", False)
    if reduced.ranks < 2:
        return Check("all-reduce", "one rank: nothing to reduce", None)
    # Each rank sends and receives 2 (n - 1) / n of the tensor (ring; the "bus bandwidth" of nccl-tests).
    moved = 2 * (reduced.ranks - 1) / reduced.ranks * REDUCED_BYTES
    speed = moved / reduced.seconds / 1e9
    return Check("all-reduce", f"{reduced.backend}, {reduced.ranks} ranks: {speed:.2f} GB/s", True)


def _storage(options: Preflight, nodes: Sequence[Facts]) -> Check:
    if options.storage is None:
        return Check("storage", "not looked at: give --storage", None)
    wrong = [f"{n.node}: {n.storage.error}" for n in nodes if n.storage and n.storage.error]
    wrong = wrong or [
        f"{n.node} does not see what {n.storage.unseen} wrote: this is not one place"
        for n in nodes
        if n.storage and n.storage.unseen
    ]
    if wrong:
        return Check("storage", _listed(wrong), False)
    slowest = [
        max(times) for times in zip(*((n.storage.write_s, n.storage.read_s) for n in nodes if n.storage), strict=True)
    ]
    write, read = (STORAGE_BYTES / 1e6 / max(seconds, 1e-9) for seconds in slowest)
    return Check("storage", f"a node writes {write:,.0f} MB/s and reads {read:,.0f} MB/s at least", True)


def _mlflow(nodes: Sequence[Facts]) -> Check:
    if all(n.mlflow is None for n in nodes):
        found = "MLFLOW_TRACKING_URI is not set"
        return Check("MLflow", found, None if len(nodes) == 1 else False)
    wrong = [
        f"{n.node}: {'MLFLOW_TRACKING_URI is not set' if n.mlflow is None else n.mlflow}"
        for n in nodes
        if n.mlflow != ""
    ]
    return Check("MLflow", _listed(wrong) if wrong else "answers on every node", not wrong)


def _clock(nodes: Sequence[Facts]) -> Check:
    worst = max(nodes, key=lambda n: abs(n.skew_s))
    found = f"at most {abs(worst.skew_s):.3f} s apart from the driver's"
    if abs(worst.skew_s) > MAX_SKEW_S:
        return Check("clocks", f"{worst.node} is {worst.skew_s:+.1f} s off; is its time synchronised?", False)
    return Check("clocks", found, True)


def _shared_memory(nodes: Sequence[Facts]) -> Check:
    small = [
        f"{n.node}: {n.shared_memory / GIB:.2f} GiB, and an object store of {n.object_store / GIB:.2f} GiB"
        for n in nodes
        if n.shared_memory < max(MIN_SHARED_MEMORY, n.object_store)
    ]
    if small:
        return Check("shared memory", f"{_listed(small)}; in a container, --shm-size", False)
    return Check("shared memory", f"at least {min(n.shared_memory for n in nodes) / GIB:.1f} GiB", True)


def _spill_disk(nodes: Sequence[Facts]) -> Check:
    small = [f"{n.node}: {n.spill_disk / GIB:.1f} GiB free" for n in nodes if n.spill_disk < MIN_SPILL_DISK]
    if small:
        return Check("spill disk", f"{_listed(small)}, less than {MIN_SPILL_DISK / GIB:.0f} GiB", False)
    return Check("spill disk", f"at least {min(n.spill_disk for n in nodes) / GIB:.0f} GiB free", True)


def _listed(parts: Sequence[str], most: int = 4) -> str:
    more = f" and {len(parts) - most} more" if len(parts) > most else ""
    return ", ".join(parts[:most]) + more


def preflight(options: Preflight) -> int:
    """Look, print the table, and give the exit code."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    wanted = Wanted(options.cpus or 0, options.gpus or 0, options.wait)
    checks = judge(options, *look(options.storage, options.mlflow, wanted))
    table = Table("check", "found", "")
    marks = {True: Text("ok", "green"), False: Text("FAILED", "red"), None: Text("-")}
    for check in checks:
        table.add_row(check.name, check.found, marks[check.ok])
    console = Console(markup=False, emoji=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)
    failed = [check.name for check in checks if check.ok is False]
    console.print(f"not fit: {', '.join(failed)}" if failed else "fit for the job")
    return EXIT_FAILED if failed else EXIT_OK


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(Preflight, "corrdiff preflight", sys.argv[1:] if argv is None else argv, preflight)


if __name__ == "__main__":
    sys.exit(main())
