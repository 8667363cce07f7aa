"""One connection to object storage broken in the middle of a shard: what each reader makes of it, crops of how many.

A real S3 server behind a proxy that resets one answer half-way, at several places. Ray Data's `read_webdataset`,
webdataset, and ours.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from _measure import Row, parser, report

from pipelines import ingest, plan, storage
from pipelines.plan import Cursor
from pipelines.shards import Manifest, read_manifest
from tests.servers import Fault, s3_server, signed

BATCH = 16


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--requests", type=int, nargs="+", default=[1, 2, 3], help="which answer for the shard is broken")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as root, s3_server(Path(root) / "s3") as server:
        cut = ["sample:", f"{root}/shards", "--crop", "128", "--stride", "32", "--images-per-shard", "5"]
        subprocess.run([sys.executable, "-m", "pipelines", "shard", *cut], check=True)
        for file in Path(f"{root}/shards").iterdir():
            if file.is_file():
                storage.write_bytes(f"{server.uri}/{file.name}", file.read_bytes())
        manifest = read_manifest(server.uri)
        import ray

        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows: list[Row] = []
        for request in arguments.requests:
            row: Row = {"broken answer": request}
            for name, read in READERS.items():
                # Answers before the broken one pass, slowly.
                before = Fault("slow", r"shard-00000\.tar", times=request - 1)
                fault = Fault("reset", r"shard-00000\.tar")
                with server.proxy.failing(before, fault):
                    try:
                        row[name] = f"{read(server.uri, manifest):,} of {manifest.count:,}"
                    except Exception as error:
                        last = str(error).strip().splitlines()[-1] if str(error).strip() else ""
                        row[name] = f"{type(error).__name__}: {last[:60]}"
                row[name] += "" if fault.met else " (not met)"
            rows.append(row)
        report("crops that come out when one answer breaks off", rows, arguments.json)


def ours(uri: str, manifest: Manifest) -> int:
    reader = ingest.CropReader(uri, manifest, seed=0, batch=BATCH)
    batches = reader.batches(Cursor(0, 0), plan.steps_per_epoch(manifest, BATCH))
    return len({key for batch in batches for key in batch.keys if key})


def ray_data(uri: str, manifest: Manifest) -> int:
    import ray.data

    fs, path = storage.open_fs(uri)
    files = [f"{path}/{shard.name}" for shard in manifest.shards]
    return int(ray.data.read_webdataset(files, filesystem=fs, suffixes=["png"], decoder=None).count())


def web_dataset(uri: str, manifest: Manifest) -> int:
    import webdataset as wds

    urls = [f"pipe:curl -s '{signed(f'{uri}/{shard.name}')}'" for shard in manifest.shards]
    return sum(1 for _ in wds.WebDataset(urls, shardshuffle=False, handler=wds.warn_and_continue))


READERS: dict[str, Callable[[str, Manifest], int]] = {
    "ours": ours, "ray.data.read_webdataset": ray_data, "webdataset": web_dataset,
}  # fmt: skip

if __name__ == "__main__":
    main()
