"""Peak memory of large pictures, and whether the seams of their tiles can be seen.

Memory: pictures of 1 to 100 megapixels through `compress_batch` and `decompress_batch`, each in a process of its own;
"beyond" is the peak over the process with the codec loaded, less the picture's own 8-bit pixels in and out.
Seams: photographs in tiles of 256 and untiled: the mean step from one pixel to the next across the borders of tiles
against the same step anywhere else, and both pictures' PSNR.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.measure import Row, again, parser, report, sample
from corrdiff import metrics
from corrdiff.codec import Settings
from corrdiff.codec_directory import load_codec
from corrdiff.images import open_image
from corrdiff.picture import Picture
from pipelines.inputs import sources

MIB = 1 << 20
SIDE = 256


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--codec", required=True, help="trained codec directory")
    made.add_argument("--images", default="sample:", help="photographs for the seams")
    made.add_argument("--limit", type=int, default=24)
    made.add_argument("--megapixels", type=float, nargs="*", default=[1, 12, 50, 100])
    made.add_argument("--steps", type=int, default=2)
    made.add_argument("--one", nargs=2, metavar=("MEGAPIXELS", "FILE"), help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.one:
        one_picture(arguments.codec, float(arguments.one[0]), Path(arguments.one[1]), arguments.steps)
        return
    if arguments.megapixels:
        title = f"peak memory in MiB, {arguments.steps} steps"
        report(title, memory_rows(arguments.codec, arguments.megapixels, arguments.steps), arguments.json)
    if arguments.limit:
        rows = seam_rows(arguments.codec, arguments.images, arguments.limit)
        report(f"tiles of {SIDE} against untiled", rows, arguments.json)


def memory_rows(codec: str, megapixels: list[float], steps: int) -> list[Row]:
    rows = []
    for size in megapixels:
        with TemporaryDirectory() as directory:
            file = Path(directory) / "picture.crdf"
            for what in ("encode", "decode"):  # the file's presence says which
                done = subprocess.run(
                    again("--codec", codec, "--steps", steps, "--one", size, file),
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                width, height, before, peak, seconds = (float(v) for v in done.stdout.split())
                pixels = 3 * width * height / MIB
                rows.append(
                    {
                        "megapixels": size,
                        "picture": f"{width:.0f}x{height:.0f}",
                        "what": what,
                        "codec loaded": round(before),
                        "peak": round(peak),
                        "pixels in and out": round(pixels * (2 if what == "encode" else 1)),
                        "beyond": round(peak - before - pixels * (2 if what == "encode" else 1)),
                        "seconds": round(seconds),
                    }
                )
    return rows


def one_picture(codec_uri: str, megapixels: float, file: Path, steps: int) -> None:
    """Encode a picture to the file, or decode the file if it is there; prints sizes and memory."""
    codec = load_codec(codec_uri)
    width, height = (round((megapixels * 1e6 * r) ** 0.5) for r in (1.5, 1 / 1.5))
    small = sample(96, 64)
    codec.decompress(codec.compress(small, steps=1))  # compiled code and libraries' buffers
    before = _peak()
    if file.exists():
        started = time.monotonic()
        codec.decompress(file.read_bytes(), max_pixels=1 << 30)
    else:
        picture = np.empty((height, width, 3), np.uint8)
        photograph = sample(600, 400)
        for top in range(0, height, 400):
            for left in range(0, width, 600):
                part = picture[top : top + 400, left : left + 600]
                part[:] = photograph[: part.shape[0], : part.shape[1]]
        started = time.monotonic()
        file.write_bytes(codec.compress_batch([picture], Settings(steps=steps))[0].data)
    print(width, height, before, _peak(), time.monotonic() - started)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seam_rows(codec_uri: str, images: str, limit: int) -> list[Row]:
    codec = load_codec(codec_uri)
    places = sources.list_pictures(images)
    places = places[:: max(1, len(places) // limit)][:limit]
    originals = [open_image(sources.read(s)).pixels for s in places]
    rows = []
    for fidelity in (0.0, 0.5, 1.0):
        shown: dict[str, list[Picture]] = {"tiled": [], "untiled": []}
        sizes: dict[str, int] = {"tiled": 0, "untiled": 0}
        for original in originals:
            for name, side in (("tiled", SIDE), ("untiled", 0)):
                encoded = codec.compress_batch([original], Settings(4, fidelity, None, side))[0]
                shown[name].append(encoded.reconstruction)
                sizes[name] += len(encoded.data)
        for name, made in {"original": originals, **shown}.items():
            border, elsewhere = (statistics.mean(v) for v in zip(*map(_steps, made), strict=True))
            rows.append(
                {
                    "fidelity": fidelity,
                    "picture": name,
                    "bytes": sizes.get(name),
                    "step at borders": border,
                    "elsewhere": elsewhere,
                    "borders over elsewhere": border / elsewhere,
                    "PSNR dB": statistics.mean(map(metrics.psnr, originals, made)) if name in shown else None,
                }
            )
    return rows


def _steps(picture: Picture) -> tuple[float, float]:
    """Mean absolute difference of neighbouring pixels across the borders of tiles, and everywhere else."""
    border, elsewhere = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(picture.astype(np.int16), axis=axis)).mean(axis=(1 - axis, 2))
        at = np.arange(len(steps)) % SIDE == SIDE - 1
        border += steps[at].tolist()
        elsewhere += steps[~at].tolist()
    return statistics.mean(border), statistics.mean(elsewhere)


if __name__ == "__main__":
    main()
