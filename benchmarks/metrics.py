"""What measuring a picture takes: seconds of one core and peak memory, a megapixel, of every metric.

A sample photograph, enlarged, against itself as a JPEG file of quality 40; each metric in a process of its own, after a
small picture that does not count. "beyond" is the peak over the process before it, without the two pictures. A measure
of sets is given one picture a set.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import time
from pathlib import Path

import torch

from benchmarks.measure import Row, again, parser, report, sample
from corrdiff import metrics
from corrdiff.picture import Picture
from pipelines.evaluate import anchors

MIB = 1 << 20
ROUNDS = 5
"""The fastest counts: others on the machine make a metric slower, never faster."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--width", type=int, default=2048)
    made.add_argument("--height", type=int, default=1536)
    made.add_argument("--one", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.one:
        one_metric(arguments.one, arguments.width, arguments.height)
        return
    names = [metric.name for metric in (*metrics.METRICS, *metrics.SET_METRICS)]
    rows = [_row(name, arguments.width, arguments.height) for name in names]
    report(f"{arguments.width}x{arguments.height}, one core", rows, arguments.json)


def _row(name: str, width: int, height: int) -> Row:
    command = again("--one", name, "--width", width, "--height", height)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    value, seconds, beyond = done.stdout.split()
    if value == "None":
        return {"metric": name, "value": "absent"}
    megapixels = width * height / 1e6
    return {
        "metric": name,
        "value": float(value),
        "s/megapixel": float(seconds) / megapixels,
        "beyond, MiB/megapixel": round(float(beyond) / MIB / megapixels),
    }


def one_metric(name: str, width: int, height: int) -> None:
    torch.set_num_threads(1)
    original = sample(width, height)
    picture = anchors.decode("jpeg", anchors.encode("jpeg", original, 40))
    small, networks = slice(0, 256), metrics.load_networks()
    _measure(name, original[small, small], picture[small, small], networks)
    Path("/proc/self/clear_refs").write_text("5")
    before, seconds = _peak_bytes(), []
    for _ in range(ROUNDS):
        started = time.process_time()
        value = _measure(name, original, picture, networks)
        seconds.append(time.process_time() - started)
    print(value, min(seconds), _peak_bytes() - before)


def _measure(name: str, original: Picture, picture: Picture, networks: metrics.Networks) -> float | None:
    for one in metrics.SET_METRICS:
        if one.name == name:
            sampling = metrics.SAMPLINGS[one.sampling]
            return one.distance(*([sampling(p, 0, 1, networks)] for p in (original, picture)))
    (found,) = (metric for metric in metrics.METRICS if metric.name == name)
    return found.measure(original, picture, networks)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
