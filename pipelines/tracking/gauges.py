"""The one table of what runs tell Ray's metrics, which dashboards and alerts are made of."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Gauge(NamedTuple):
    """A number of a run, as it changes."""

    name: str
    """Prometheus has it as ray_corrdiff_NAME, with the labels `kind` and `run`."""
    title: str
    unit: str
    """As Grafana calls it."""
    runs: Literal["training", "compression"]
    """Which runs have it."""


GAUGES = {
    gauge.name: gauge
    for gauge in (
        Gauge("crops", "Crops seen", "short", "training"),
        Gauge("crops_per_s", "Crops a second", "short", "training"),
        Gauge("crops_per_s_per_worker", "Crops a second and worker", "short", "training"),
        Gauge("workers", "Workers", "short", "training"),
        Gauge("waiting_share", "Share of the time that steps wait for crops", "percentunit", "training"),
        Gauge("read_mb_per_s", "Read from storage", "MBs", "training"),
        Gauge("tflops_per_s", "TFLOP/s of all workers", "short", "training"),
        Gauge("hfu", "Share of the GPUs' peak (HFU), on GPUs that are known", "percentunit", "training"),
        Gauge("peak_memory_gib", "Most memory of a worker", "gbytes", "training"),
        Gauge("pictures", "Pictures done", "short", "compression"),
        Gauge("pictures_per_s", "Pictures a second", "short", "compression"),
        Gauge("megapixels_per_s", "Megapixels a second", "short", "compression"),
        Gauge("bpp", "Bits a pixel so far", "short", "compression"),
        Gauge("failures", "Pictures that failed", "short", "compression"),
    )
}
