"""A million damaged inputs whose checksums hold: each is refused in a sentence, or read as what it says.

What is looked for: an exception that callers do not expect, more than a second of work, memory over the limit (each
process has an address space of that size), and a file of ours that is read as something else. Checksums are put right
after the damage, since else they would stop nearly all at the door. Nobody puts that of our own records right by
accident: one bit of those is flipped.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import os
import resource
import struct
import sys
import tarfile
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measure import Row, parser, report
from corrdiff.errors import JobError, UsageError
from corrdiff.format import bitstream
from corrdiff.images import open_image
from pipelines.dataset import format as compressed
from pipelines.dataset.format import Plan, Stage
from pipelines.dataset.summary import Summary
from pipelines.dataset.units import File, Record
from pipelines.files import storage
from pipelines.files.records import read_record
from pipelines.inputs import units
from pipelines.inputs.units import PlannedUnits, Unit
from pipelines.shards.format import Manifest, Shard, read_manifest, write_manifest
from pipelines.train.checkpoints import Complete, PartFile
from pipelines.train.epoch_order import Cursor

LIMIT_BYTES = 1 << 30
"""Of address space beyond what the process has before the first input."""
LIMIT_S = 1.0
EXPECTED = UsageError, JobError
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\x80" * 8)


class Target(NamedTuple):
    """Something that reads what it is given."""

    share: int
    """Of a thousand inputs."""
    damage: Callable[[np.random.Generator], bytes]
    read: Callable[[bytes], object]
    """Raises one of `EXPECTED`, or `AssertionError` for what is read as something else."""


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One to five changes: bytes replaced, inserted, deleted, repeated, extreme numbers, an end."""
    out = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at, length = int(rng.integers(len(out) + 1)), int(rng.integers(1, 9))
        kind = rng.integers(7)
        if kind == 0:
            out[at : at + length] = rng.bytes(length)
        elif kind == 1:
            out[at:at] = rng.bytes(length)
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + 8 * length] * int(rng.integers(1, 16))
        elif kind == 4:
            extreme = EXTREMES[rng.integers(len(EXTREMES))]
            out[at : at + len(extreme)] = extreme
        elif kind == 5 and at < len(out):
            out[at] ^= 1 << rng.integers(8)
        elif kind == 6 and rng.random() < 0.2:
            del out[at:]
    return bytes(out)


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """One bit."""
    out = bytearray(data)
    out[rng.integers(len(out))] ^= 1 << rng.integers(8)
    return bytes(out)


# --- the container


def container_target() -> Target:
    rng = np.random.default_rng(0)
    headers = [(33, 17, 0, 1), (300, 200, 256, 4), (65, 1, 0, 1)]
    files = []
    for width, height, tile, tiles in headers:
        header = bitstream.Header(rng.bytes(8), width, height, 4, 8, 128, 5, tile)
        streams = [bitstream.Streams(rng.bytes(20), rng.bytes(9), rng.bytes(60)) for _ in range(tiles)]
        files.append(bitstream.pack(header, streams))

    def damage(rng: np.random.Generator) -> bytes:
        body = damaged(files[rng.integers(len(files))][:-4], rng)
        return body + struct.pack("<I", zlib.crc32(body))

    def read(data: bytes) -> None:
        header, tiles = bitstream.unpack(data, max_pixels=1 << 20)
        assert bitstream.pack(header, tiles) == data, "two files say the same"

    return Target(500, damage, read)


# --- tars and pictures in them


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, link in (("a.png", ""), ("n" * 150 + "ö.png", ""), ("b.json", ""), ("c.png", "a.png")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = (tarfile.LNKTYPE, link) if link else (tarfile.REGTYPE, "")
            info.size = 0 if link else 700
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return buffer.getvalue()[:9216]


def _with_checksums(data: bytes) -> bytes:
    """The tar with the checksum of each block that may be a header put right."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % (sum(out[at : at + 512]) & 0o777777)
    return bytes(out)


def tar_target(directory: Path) -> Target:
    whole = _tar()

    def damage(rng: np.random.Generator) -> bytes:
        tar = _with_checksums(damaged(whole, rng))
        return gzip.compress(tar, 1) if rng.random() < 0.1 else tar

    def read(data: bytes) -> None:
        name = directory / ("a.tgz" if data[:2] == b"\x1f\x8b" else "a.tar")
        name.write_bytes(data)
        left_out: Counter[str] = Counter()
        found = list(units.read_pictures(Unit("shard", [str(name)], ["a.tar"]), left_out=left_out))
        assert len(found) + left_out.total() < 10_000
        assert len({f.key for f in found if not f.key.endswith("/-")}) == sum(not f.key.endswith("/-") for f in found)
        for f in found:
            f.key.encode(), f.source.encode(), f.error.encode()

    return Target(60, damage, read)


# --- what we write for ourselves


def _target_of(share: int, whole: bytes, read: Callable[[], Any], place: Path, change: Any = flipped) -> Target:
    """One that writes the damaged bytes to `place`, and reads the same as before or says what is wrong."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(whole)
    expected = read()

    def again(data: bytes) -> None:
        place.write_bytes(data)
        assert read() == expected, "read as something else"

    return Target(share, functools.partial(change, whole), again)


def own_targets(directory: Path) -> dict[str, Target]:
    uri, file = str(directory), File("part-00000-0123456789ab.tar", 1234, "a" * 64)
    record = Record(7, file, file, 64, 1, 1000, 4096, {"read": 1.5}, {".json": 3})
    summary = Summary(64, 1, 1000, 4096, 1.9, {"bpp": {"mean": 1.0}}, {"broken": 1}, {"4": 63}, "f" * 64, {".txt": 1})
    plan = Plan(
        {"codec": "f" * 64, "images": "/in", "quality": 4}, (Stage("_plan/0123", 3, 64, ("b" * 64,), {".heic": 2}),)
    )
    manifest = Manifest(256, (Shard("shard-00000.tar", 8, 1000, "a" * 64, "b" * 64),), (("/a.png", "broken"),), 3)
    marker = Complete(4096, 64, Cursor(1, 4096), {"part-0-of-1.safetensors": PartFile(1000, "a" * 64)})
    write_manifest(uri, "c" * 64, manifest)
    unit = Unit("files", ["/in/a.png", "/in/b.png"], ["a", "b"], pictures=2)
    count = units.write_plan(f"{uri}/_plan", iter([unit] * 8))
    planned, of_before = PlannedUnits(f"{uri}/_plan", count.files), directory / "_plan" / "00000.parquet"
    plan_file = of_before.read_bytes()
    tree: dict[str, Target] = {}
    for name, value, read in (
        ("record of a unit", record, lambda place: read_record(place, Record)),
        ("summary", summary, lambda place: read_record(place, Summary)),
        ("marker of a checkpoint", marker, lambda place: read_record(place, Complete)),
    ):
        place = directory / f"{name.replace(' ', '-')}.json"
        data = storage.sealed(dataclasses.asdict(value))
        tree[name] = _target_of(60, data, functools.partial(read, str(place)), place)
    data = storage.sealed({"format": compressed.FORMAT, **dataclasses.asdict(plan)})
    tree["plan.json"] = _target_of(60, data, lambda: compressed.read_plan(uri), directory / "plan.json")
    data = (directory / "manifest.json").read_bytes()
    tree["manifest"] = _target_of(60, data, lambda: read_manifest(uri), directory / "manifest.json")
    tree["file of a plan"] = _target_of(60, plan_file, lambda: units.read_units(planned, 0), of_before)

    def read_older(data: bytes) -> None:
        of_before.write_bytes(data)
        units.read_units(PlannedUnits(f"{uri}/_plan"), 0)

    tree["file of a plan, no checksum"] = Target(40, functools.partial(damaged, plan_file), read_older)
    return tree


def config_target(directory: Path) -> Target:
    from corrdiff.codec_directory import read_config

    source = Path(__file__).parents[1] / "corrdiff" / "builtin" / "tiny" / "config.json"
    whole = json.loads(source.read_bytes())
    data = json.dumps({key: value for key, value in whole.items() if key != "provenance"} | {"provenance": {}}).encode()

    def read(data: bytes) -> None:
        (directory / "config.json").write_bytes(data)
        read_config(str(directory))

    return Target(60, functools.partial(damaged, data), read)


def picture_target() -> Target:
    from PIL import Image

    files = []
    for kind in ("PNG", "TIFF", "JPEG", "GIF", "BMP", "WEBP", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)).save(buffer, kind)
        files.append(buffer.getvalue())

    def damage(rng: np.random.Generator) -> bytes:
        data = bytearray(damaged(files[rng.integers(len(files))], rng))
        at = 8
        while data[:4] == b"\x89PNG" and at + 12 <= len(data):
            length = struct.unpack_from(">I", data, at)[0]
            if at + 12 + length > len(data):
                break
            struct.pack_into(">I", data, at + 8 + length, zlib.crc32(data[at + 4 : at + 8 + length]))
            at += 12 + length
        return bytes(data)

    def read(data: bytes) -> None:
        assert open_image(data, max_pixels=1 << 20).pixels.dtype == np.uint8

    return Target(50, damage, read)


def targets(directory: Path) -> dict[str, Target]:
    return {
        "container": container_target(), "tar": tar_target(directory), **own_targets(directory / "own"),
        "codec's configuration": config_target(directory), "picture": picture_target(),
    }  # fmt: skip


def run(name: str, inputs: int) -> Row:
    """Feed a target; the row says how many inputs were read, refused, or what they should not be."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        target, rng = targets(Path(directory))[name], np.random.default_rng(1)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, resource.RLIM_INFINITY))
        refused, found, slowest, started = 0, Counter[str](), 0.0, time.monotonic()
        for _ in range(inputs):
            data = target.damage(rng)
            begin = time.thread_time()
            try:
                target.read(data)
            except EXPECTED as error:
                refused += 1
                if len(str(error).splitlines()) > 1:
                    found["several lines"] += 1
            except Exception as error:
                found[f"{type(error).__name__}: {str(error)[:80]}"] += 1
            seconds = time.thread_time() - begin
            slowest = max(slowest, seconds)
            if seconds > LIMIT_S:
                found["slow"] += 1
    return {
        "target": name, "inputs": inputs, "refused": refused, "slowest, ms": round(1000 * slowest, 1),
        "seconds": round(time.monotonic() - started), "found": "; ".join(f"{n} x {what}" for what, n in found.items()),
    }  # fmt: skip


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--inputs", type=int, default=1_000_000)
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        shares = {name: target.share for name, target in targets(Path(directory)).items()}
    rows: list[Row] = []
    for name, share in shares.items():
        inputs = -(-arguments.inputs * share // sum(shares.values()))
        with get_context("spawn").Pool(1) as pool:  # a process of its own: its limit of memory, and its crash
            rows.append(pool.apply(run, (name, inputs)))
        print(rows[-1], file=sys.stderr, flush=True)
    report("damaged inputs whose checksums hold", rows, arguments.json)


if __name__ == "__main__":
    main()
