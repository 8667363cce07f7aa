"""Does memory stay flat while a run trains? Memory of its processes, from the first to the last of many crops."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time

import psutil

from benchmarks.measure import Row, parser, report
from corrdiff.codec_directory import save_codec
from corrdiff.config import tiny
from corrdiff.networks.model import CorrDiffModel

KINDS = {
    "training worker": r"^ray::\S*TrainWorker",
    "reading and the rest of Ray's workers": r"^ray::(?!\S*TrainWorker)",
    "Ray's own processes": r"raylet|gcs_server",
}
POINTS = 10
MIB = 2**20


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--crops", type=int, default=50_000)
    made.add_argument("--crop", type=int, default=64)
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--phase", default="phase1", choices=["phase1", "phase2"], help="2 is quicker: the same loop")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as root:
        common = [sys.executable, "-m", "pipelines"]
        cut = ["sample:", f"{root}/shards", "--crop", "96", "--stride", "48", "--pictures-per-shard", "1"]
        subprocess.run([*common, "shard", *cut], check=True, stdout=subprocess.DEVNULL)
        train = [
            *common, "train", arguments.phase, "--init-from", untrained(f"{root}/codec"),
            "--shards", f"{root}/shards", "--storage", root, "--crops-total", str(arguments.crops),
            "--crop", str(arguments.crop), "--batch", str(arguments.batch),
            "--validate-every", str(arguments.crops), "--checkpoint-every", str(arguments.crops // 5),
        ]  # fmt: skip
        process = subprocess.Popen(train, stdout=subprocess.PIPE, text=True, cwd=root)
        reached = 0

        def follow() -> None:
            nonlocal reached
            assert process.stdout is not None
            for line in process.stdout:
                found = re.match(r"phase\d: ([\d,]+) of", line)
                reached = int(found[1].replace(",", "")) if found else reached

        reader = threading.Thread(target=follow)
        reader.start()
        rows: list[Row] = []
        started = time.monotonic()
        while process.poll() is None:
            time.sleep(0.5)
            if reached > arguments.crops * len(rows) / POINTS:
                rows.append({"crops": reached, "seconds": round(time.monotonic() - started), **resident(process.pid)})
        reader.join()
        if process.returncode:
            raise SystemExit("training failed")
    title = (
        f"resident MiB while {arguments.phase} trains on {arguments.crops:,} crops of {arguments.crop} pixels, shared "
        "memory left out"
    )
    report(title, rows, arguments.json)


def untrained(directory: str) -> str:
    """A codec to start from."""
    model = CorrDiffModel(tiny())
    save_codec(model, model.entropy.freeze(), directory)
    return directory


def resident(parent: int) -> Row:
    """MiB of private memory of each kind of process under the command."""
    sums: Row = dict.fromkeys(["the command", *KINDS], 0)
    for process in [psutil.Process(parent), *psutil.Process(parent).children(recursive=True)]:
        try:
            line, memory = " ".join(process.cmdline()), process.memory_info()
        except psutil.NoSuchProcess:
            continue
        kind = (
            "the command" if process.pid == parent else next((k for k, p in KINDS.items() if re.search(p, line)), None)
        )
        if kind:
            sums[kind] += round((memory.rss - memory.shared) / MIB)
    return sums


if __name__ == "__main__":
    main()
