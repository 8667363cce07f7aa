"""What the nodes of a Ray cluster say of themselves, and whether they can work together.

On every node an actor looks: versions, GPUs, memory, disk, clock, object storage, MLflow; then all of them reduce a
tensor together, as training will.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cluster.probe import TIMEOUT_S, Facts, Probe, Reduced, Transfer, first_line, node_name
from corrdiff.errors import JobError, UsageError


class Wanted(NamedTuple):
    """What a cluster that grows is asked for before it is looked at."""

    cpus: int
    gpus: int
    wait_s: float


def look(storage: str | None, mlflow: str | None, wanted: Wanted) -> tuple[list[Facts], Reduced]:
    """Find out what all nodes of the cluster say, and whether they can work together.

    Args:
        storage: where every node writes, reads and deletes an object; None: nowhere.
        mlflow: the tracking server that every node asks; None: the one of its environment.
        wanted: the machines to wait for. Whether they came is seen in what the nodes say.

    Raises:
        UsageError: there is no cluster where RAY_ADDRESS says.
        JobError: a node did not answer.
    """
    import ray

    with _session(), _asked_for(ray, wanted):
        return _look(ray, storage, mlflow)


def _look(ray: Any, storage: str | None, mlflow: str | None) -> tuple[list[Facts], Reduced]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    probes, names = [], []
    for node in alive:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        probes.append(ray.remote(Probe).options(num_cpus=0, scheduling_strategy=here).remote())
        names.append(node_name(node["NodeManagerAddress"], node["NodeID"]))
    ask = _asker(ray)
    nodes: list[Facts] = ask([p.facts.remote(n, a["Resources"]) for p, n, a in zip(probes, names, alive, strict=True)])
    nodes = [n._replace(skew_s=_skew(ask, p)) for n, p in zip(nodes, probes, strict=True)]
    problems = ask([p.mlflow.remote(mlflow, len(probes) == 1) for p in probes])
    nodes = [n._replace(mlflow=problem) for n, problem in zip(nodes, problems, strict=True)]
    if storage is not None:
        nodes = [n._replace(storage=t) for n, t in zip(nodes, _transfer(ask, storage, probes, names), strict=True)]
    gpus = sum(n.gpus_of_ray for n in nodes)
    if not gpus:
        return nodes, _reduce(ray, probes, "gloo")
    probes = [ray.remote(Probe).options(num_cpus=0, num_gpus=1).remote() for _ in range(gpus)]
    nodes, computing = _computed(ray, nodes, probes)
    return nodes, _reduce(ray, computing, "nccl")


@contextlib.contextmanager
def _asked_for(ray: Any, wanted: Wanted) -> Iterator[None]:
    """Have the machines that are wanted, or as many of them as came in time."""
    from ray.autoscaler.sdk import request_resources

    numbers = {"CPU": wanted.cpus, "GPU": wanted.gpus}
    bundles = [{kind: 1} for kind, number in numbers.items() for _ in range(number)]
    if not bundles:
        yield
        return
    request_resources(bundles=bundles)
    try:
        deadline, shown = time.monotonic() + wanted.wait_s, ""
        while missing := {k: n for k, n in numbers.items() if ray.cluster_resources().get(k, 0) < n}:
            if time.monotonic() > deadline:
                break
            there = ", ".join(f"{ray.cluster_resources().get(k, 0):g} of {n} {k}s" for k, n in missing.items())
            if there != shown:
                print(f"waiting for machines: {there}", flush=True)
            shown = there
            time.sleep(2)
        yield
    finally:
        request_resources(bundles=[])


def _asker(ray: Any) -> Callable[[list[Any]], list[Any]]:
    def ask(refs: list[Any]) -> list[Any]:
        try:
            return list(ray.get(refs, timeout=TIMEOUT_S))
        except ray.exceptions.GetTimeoutError:
            raise JobError(f"not every node answered in {TIMEOUT_S:.0f} s; is the cluster busy? (ray status)") from None
        except ray.exceptions.RayError as error:
            raise JobError(f"a node could not be asked: {first_line(error)}") from None

    return ask


def _skew(ask: Callable[[list[Any]], list[Any]], probe: Any) -> float:
    """Measure a node's clock against ours, in seconds, to half of the quickest answer's time."""
    best, skew = float("inf"), 0.0
    for _ in range(5):
        sent = time.time()
        theirs = float(ask([probe.now.remote()])[0])
        came = time.time()
        if came - sent < best:
            best, skew = came - sent, theirs - (sent + came) / 2
    return skew


def _transfer(
    ask: Callable[[list[Any]], list[Any]], storage: str, probes: list[Any], names: list[str]
) -> list[Transfer]:
    """Let every node write and read an object of its own, and look for its neighbour's."""
    uris = [f"{storage.rstrip('/')}/preflight-{uuid.uuid4().hex[:12]}/object" for _ in probes]
    transfers: list[Transfer] = ask([p.transfer.remote(uri) for p, uri in zip(probes, uris, strict=True)])
    neighbours = [(i + 1) % len(probes) for i in range(len(probes))]
    seen = ask([p.sees.remote(uris[j]) for p, j in zip(probes, neighbours, strict=True)])
    errors = ask([p.delete.remote(uri) for p, uri in zip(probes, uris, strict=True)])
    return [
        t._replace(error=t.error or error, unseen="" if ok or transfers[j].error else names[j])
        for t, ok, j, error in zip(transfers, seen, neighbours, errors, strict=True)
    ]


def _computed(ray: Any, nodes: list[Facts], probes: list[Any]) -> tuple[list[Facts], list[Any]]:
    """Let every GPU compute; returns the nodes with what went wrong on each, and the probes of the GPUs that can."""
    refs = [probe.compute.remote() for probe in probes]
    answered, silent = ray.wait(refs, num_returns=len(refs), timeout=TIMEOUT_S)
    broken: list[tuple[str, str]] = []
    for ref in answered:
        try:
            broken.append(ray.get(ref))
        except ray.exceptions.RayError as error:
            broken.append((nodes[0].node, f"somewhere, {first_line(error)}"))
    if silent:
        broken.append((nodes[0].node, f"{len(silent)} somewhere did not answer in {TIMEOUT_S:.0f} s: busy?"))
    errors = {n.node: tuple(error for node, error in broken if node == n.node and error) for n in nodes}
    well = [probe for probe, ref in zip(probes, refs, strict=True) if ref in answered]
    return [n._replace(broken_gpus=errors[n.node]) for n in nodes], well


def _reduce(ray: Any, probes: list[Any], backend: str) -> Reduced:
    """Sum a tensor over one rank for each GPU, or for each node where there are none."""
    if len(probes) < 2:
        return Reduced(backend, len(probes))
    try:
        at = ray.get(probes[0].open_port.remote(), timeout=TIMEOUT_S)
        refs = [p.reduce.remote(backend, at, rank, len(probes)) for rank, p in enumerate(probes)]
        every: list[Reduced] = ray.get(refs, timeout=TIMEOUT_S)
    except ray.exceptions.GetTimeoutError:
        return Reduced(
            backend, len(probes), error=f"no answer in {TIMEOUT_S:.0f} s: busy GPUs, or a closed port between nodes"
        )
    except ray.exceptions.RayError as error:
        return Reduced(backend, len(probes), error=first_line(error))
    wrong = next((r for r in every if r.error), None)
    return wrong or max(every, key=lambda r: r.seconds)


@contextlib.contextmanager
def _session() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, else this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    try:
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False, ignore_reinit_error=True)
    except ConnectionError as error:
        raise UsageError(f"no Ray cluster at {os.environ.get('RAY_ADDRESS')}: {str(error).splitlines()[0]}") from None
    try:
        yield
    finally:
        ray.shutdown()
