"""Connections to object storage broken in the middle of a shard: what each reader makes of it, crops of how many.

A real S3 server behind a proxy that resets some answers half-way, one after the other, from the first or a later on.
Ray Data's `read_webdataset` with pyarrow's driver, which it takes for s3://, webdataset with curl, and ours.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs

from benchmarks.measure import Row, parser, report
from pipelines.files import storage
from pipelines.shards.format import Manifest, read_manifest
from pipelines.train import epoch_order, ingest
from pipelines.train.crops import Crops
from pipelines.train.epoch_order import Cursor
from tests.support.servers import Fault, s3_server, signed

BATCH = 16


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--first", type=int, nargs="+", default=[1, 2, 3], help="the first answer that is broken")
    made.add_argument("--times", type=int, nargs="+", default=[1, 4], help="how many are, one after the other")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as root, s3_server(Path(root) / "s3") as server:
        cut = ["sample:", f"{root}/shards", "--crop", "128", "--stride", "32", "--pictures-per-shard", "5"]
        subprocess.run([sys.executable, "-m", "pipelines", "shard", *cut], check=True)
        for file in Path(f"{root}/shards").iterdir():
            if file.is_file():
                storage.write_bytes(f"{server.uri}/{file.name}", file.read_bytes())
        manifest = read_manifest(server.uri)
        import ray

        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows: list[Row] = []
        for first, times in itertools.product(arguments.first, arguments.times):
            row: Row = {"first broken answer": first, "broken answers": times}
            for name, read in READERS.items():
                # Answers before the broken ones pass, slowly.
                before = Fault("slow", r"shard-00000\.tar", times=first - 1)
                fault = Fault("reset", r"shard-00000\.tar", times=times)
                with server.proxy.failing(before, fault):
                    try:
                        row[name] = f"{read(server.uri, manifest):,} of {manifest.count:,}"
                    except Exception as error:
                        last = str(error).strip().splitlines()[-1] if str(error).strip() else ""
                        row[name] = f"{type(error).__name__}: {last[:60]}"
                row[name] += f" ({fault.met} met)"
            rows.append(row)
        report("crops that come out when answers break off", rows, arguments.json)


def ours(uri: str, manifest: Manifest) -> int:
    reader = ingest.CropReader(Crops(uri, manifest), seed=0, batch=BATCH)
    batches = reader.batches(Cursor(0, 0), epoch_order.steps_per_epoch(manifest, BATCH))
    return len({key for batch in batches for key in batch.keys if key})


def ray_data(uri: str, manifest: Manifest) -> int:
    import ray.data

    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    fs = pyarrow.fs.S3FileSystem(endpoint_override=endpoint, scheme="http")
    files = [f"{uri.removeprefix('s3://')}/{shard.name}" for shard in manifest.shards]
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
