"""Crops a second from shards, ours and the peers', on the same crops and cores, from disk and from an S3 server.

Each reader gives shuffled batches of uint8 crops as its manual advises, in a process of its own, one after the other in
each round. Ours does so with exactly-once, resume and a SHA-256 of every crop. `mosaicml-streaming` reads its own
format, made from the same PNG files, as its manual advises, and with what it has of these: an order that does not
depend on the number of readers, a loader that can go on in the middle of an epoch, and a SHA-256 of every shard. It is
left out where it is not installed. The other peers have none of these.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Row, again, parser, report
from pipelines.files import storage
from pipelines.shards.format import read_manifest
from tests.support.servers import s3_server, signed

BATCH = 16
WORKERS = 2
SKIPPED = 0.25
HASH = "sha256"
"""Of shards, in mosaicml-streaming's format."""
SHUFFLE = 1000
"""Crops in the peers' shuffle buffers, about our window."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--epochs", type=int, default=24, help="passes over the crops in each measurement")
    made.add_argument("--crop", type=int, default=128)
    made.add_argument("--stride", type=int, default=32)
    made.add_argument("--images", default="sample:")
    made.add_argument("--places", nargs="+", choices=["disk", "s3"], default=["disk", "s3"])
    made.add_argument(
        "--readers", nargs="+", choices=READERS, default=list(READERS), help="ours, and the peers to time"
    )
    made.add_argument("--reader", help=argparse.SUPPRESS)
    made.add_argument("--uri", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.reader:
        print(json.dumps(measure(arguments.reader, arguments.uri, arguments.epochs)))
        return
    with tempfile.TemporaryDirectory() as root, s3_server(Path(root) / "s3") as server:
        local = f"{root}/shards"
        size = ["--crop", arguments.crop, "--stride", arguments.stride, "--pictures-per-shard", 1]
        cut = [arguments.images, local, *size]
        subprocess.run([sys.executable, "-m", "pipelines", "shard", *map(str, cut)], check=True)
        os.environ["AWS_ENDPOINT_URL"] = server.endpoint
        manifest = read_manifest(local)
        streams = write_streams(local, f"{root}/streams")
        for name in (*os.listdir(local), *(f"streams/{n}" for n in os.listdir(streams))):
            source = Path(local if "/" not in name else root) / name
            if source.is_file():
                storage.write_bytes(f"{server.uri}/{name}", source.read_bytes())
        places = {"disk": ("local disk", local), "s3": ("S3 on loopback", server.uri)}
        for place, uri in (places[name] for name in arguments.places):
            rows = compare(uri, arguments.readers, arguments.rounds, arguments.epochs)
            title = f"{manifest.count:,} crops of {manifest.crop} pixels in {len(manifest.shards)} shards on {place}"
            report(f"{title}, batches of {BATCH}, medians of {arguments.rounds} rounds in turns", rows, arguments.json)


def compare(uri: str, readers: list[str], rounds: int, epochs: int) -> list[Row]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name in readers}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name in readers:
            command = again("--reader", name, "--uri", uri, "--epochs", epochs)
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
            else:
                failed[name] = done.stderr.strip().splitlines()[-1]
    ours = statistics.median(f["crops_per_s"] for f in found["ours"])
    best = max(
        statistics.median(f["crops_per_s"] for f in fs)
        for n, fs in found.items()
        if fs and not n.startswith("ours") and n != "bare read"
    )
    rows: list[Row] = []
    for name, measured in found.items():
        if not measured:
            rows.append({"reader": name, "failed": failed[name][:80]})
            continue
        row: Row = {"reader": name, "MB/s": statistics.median(f["mb_per_s"] for f in measured)}
        if name != "bare read":
            row["crops/s"] = statistics.median(f["crops_per_s"] for f in measured)
            row["ours over it"] = ours / float(row["crops/s"])
            row["first batch s"] = statistics.median(f["first_s"] for f in measured)
            row["crops in an epoch"] = int(measured[0]["crops"])
        rows.append(row)
    rows.append({"reader": "ours over the best peer", "ours over it": ours / best})
    return rows


def measure(name: str, uri: str, epochs: int) -> dict[str, float]:
    """Read some epochs; the rate leaves out the first `SKIPPED` of them, in which buffers fill."""
    manifest = read_manifest(uri)
    stored = sum(shard.bytes for shard in manifest.shards)
    begin = READERS[name](uri, epochs)
    started = time.perf_counter()
    first_s = counted_from = 0.0
    crops = skipped = 0
    for rows in begin():
        now = time.perf_counter() - started
        first_s = first_s or now
        crops += rows
        if name != "bare read" and not counted_from and crops >= SKIPPED * epochs * manifest.count:
            counted_from, skipped = now, crops
    seconds = time.perf_counter() - started - counted_from
    if name == "bare read":
        return {"mb_per_s": stored * epochs / 1e6 / seconds}
    rate = (crops - skipped) / seconds
    return {
        "crops_per_s": rate, "first_s": first_s, "crops": crops / epochs,
        "mb_per_s": rate * stored / manifest.count / 1e6,
    }  # fmt: skip


Begin = Callable[[], Iterator[int]]
"""Starts reading; yields the crops in each batch."""


def ours(uri: str, epochs: int) -> Begin:
    import ray

    from pipelines.runtime.session import quiet_ray
    from pipelines.train import epoch_order
    from pipelines.train.crops import Crops
    from pipelines.train.epoch_order import Cursor
    from pipelines.train.ingest import CropReader

    ray.init(num_cpus=WORKERS, log_to_driver=False, include_dashboard=False)
    quiet_ray()
    manifest = read_manifest(uri)
    reader = CropReader(Crops(uri, manifest), seed=0, batch=BATCH)
    steps = epochs * epoch_order.steps_per_epoch(manifest, BATCH)

    def begin() -> Iterator[int]:
        for batch in reader.batches(Cursor(0, 0), steps):
            assert batch.pixels_BHWC.dtype == np.uint8
            yield int(batch.weight_B.sum())

    return begin


def ray_data(uri: str, epochs: int) -> Begin:
    """`read_webdataset` with its own decoder, and its local shuffle."""
    import ray
    import ray.data

    ray.init(num_cpus=WORKERS, log_to_driver=False, include_dashboard=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    names = [shard.name for shard in read_manifest(uri).shards]
    fs, path = storage.open_fs(uri)

    def begin() -> Iterator[int]:
        for _ in range(epochs):
            dataset = ray.data.read_webdataset(
                [f"{path}/{n}" for n in names], filesystem=fs, suffixes=["png"], shuffle="files"
            )
            for batch in dataset.iter_batches(
                batch_size=BATCH, batch_format="numpy", local_shuffle_buffer_size=SHUFFLE, prefetch_batches=4
            ):
                yield len(np.stack(batch["png"]))

    return begin


def web_dataset(decode: Callable[[bytes], Any] | None) -> Callable[[str, int], Begin]:
    """webdataset and torch's DataLoader, with its own decoder or another."""

    def prepare(uri: str, epochs: int) -> Begin:
        import webdataset as wds

        names = [shard.name for shard in read_manifest(uri).shards]
        if uri.startswith("s3://"):
            urls = [f"pipe:curl -s '{signed(f'{uri}/{n}')}'" for n in names]
        else:
            urls = [f"{uri}/{n}" for n in names]

        def begin() -> Iterator[int]:
            for _ in range(epochs):
                dataset = wds.WebDataset(urls, shardshuffle=100).shuffle(SHUFFLE)
                decoded = dataset.decode("rgb8") if decode is None else dataset.map_dict(png=decode)
                batched = decoded.to_tuple("png").batched(BATCH)
                for (pixels,) in wds.WebLoader(batched, batch_size=None, num_workers=WORKERS, prefetch_factor=4):
                    yield len(np.asarray(pixels))

        return begin

    return prepare


def our_decoder(data: bytes) -> Any:
    from pipelines.shards import crop_png

    return crop_png.decode(memoryview(data))


def mosaicml(checked: bool) -> Callable[[str, int], Begin]:
    """mosaicml-streaming, `checked` with its resumable loader and the hash of each shard, which it looks at when the
    shard comes to its cache: from a disk too there is a cache then."""

    def prepare(uri: str, epochs: int) -> Begin:
        from streaming import StreamingDataLoader, StreamingDataset
        from torch.utils.data import DataLoader

        streams = f"{uri}/streams" if uri.startswith("s3://") else f"{Path(uri).parent}/streams"
        cache = tempfile.mkdtemp()
        os.environ.setdefault("S3_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT_URL", ""))

        class Crops(StreamingDataset):  # type: ignore[misc, no-any-unimported]
            def __getitem__(self, index: int) -> Any:
                return np.asarray(super().__getitem__(index)["png"])

        def begin() -> Iterator[int]:
            cached = checked or "://" in streams
            where = {"remote": streams, "local": cache} if cached else {"local": streams}
            hashes = {"validate_hash": HASH} if checked else {}
            dataset = Crops(**where, **hashes, shuffle=True, batch_size=BATCH, num_canonical_nodes=1)
            kind = StreamingDataLoader if checked else DataLoader
            loader = kind(dataset, batch_size=BATCH, num_workers=WORKERS, prefetch_factor=4, collate_fn=np.stack)
            for _ in range(epochs):
                for pixels in loader:
                    yield len(pixels)

        return begin

    return prepare


def bare_read(uri: str, epochs: int) -> Begin:
    """The bytes of the shards, one after the other, and nothing else."""
    names = [shard.name for shard in read_manifest(uri).shards]

    def begin() -> Iterator[int]:
        for _ in range(epochs):
            for name in names:
                yield len(storage.read_bytes(f"{uri}/{name}"))

    return begin


def write_streams(local: str, out: str) -> str:
    """The same PNG files in mosaicml-streaming's format; an empty directory where it is not installed."""
    Path(out).mkdir()
    try:
        from streaming import MDSWriter
    except ImportError:
        return out
    with MDSWriter(out=out, columns={"png": "png"}, size_limit=16 << 20, hashes=[HASH]) as writer:
        for shard in read_manifest(local).shards:
            with tarfile.open(f"{local}/{shard.name}") as tar:
                for info in tar:
                    if info.name.endswith(".png"):
                        from PIL import Image

                        writer.write({"png": Image.open(tar.extractfile(info)).convert("RGB")})
    return out


READERS: dict[str, Callable[[str, int], Begin]] = {
    "ours": ours,
    "webdataset": web_dataset(None),
    "webdataset with our PNG decoder": web_dataset(our_decoder),
    "mosaicml-streaming": mosaicml(checked=False),
    "mosaicml-streaming, hashes and resume": mosaicml(checked=True),
    "ray.data.read_webdataset": ray_data,
    "bare read": bare_read,
}

if __name__ == "__main__":
    main()
