"""Pictures and crops a second that a training reads from a compressed dataset, beside JPEG in WebDataset shards.

The same photographs, in the same order, in one process with one thread, as a loader's worker has it: webdataset decodes
its JPEGs by Pillow and cuts a square out of each; ours decodes files of the codec, whole or the squares alone, or gives
their latents.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import webdataset as wds

from benchmarks.batch_compress import untrained, write_pictures
from benchmarks.measure import Row, interleaved, parser, report
from corrdiff.codec_directory import load_codec
from corrdiff.config import Settings
from pipelines import CompressedPictures
from pipelines.compress.config import CompressConfig
from pipelines.compress.job import compress_dataset
from pipelines.files.tar import add_member
from pipelines.runtime.session import ray_session

CROP = 256


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--pictures", type=int, default=16)
    made.add_argument("--width", type=int, default=1536)
    made.add_argument("--height", type=int, default=1024)
    made.add_argument("--preset", default="tiny")
    made.add_argument("--codec", help="untrained networks of the preset where it is not given: as fast")
    arguments = made.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root}/mlflow.db"
        codec = arguments.codec or untrained(arguments.preset, f"{root}/codec")
        write_pictures(Path(root) / "pictures", arguments)
        jpegs = in_a_tar(Path(root) / "pictures")
        with ray_session():
            for _ in compress_dataset(f"{root}/pictures", f"{root}/out", codec, CompressConfig(steps=2)):
                pass

        def ours(**options: object) -> Callable[[], None]:
            pictures = CompressedPictures(f"{root}/out", codec, seed=0, device="cpu", **options)  # type: ignore[arg-type]
            return lambda: consume(pictures)

        actions = {
            "JPEG, webdataset, whole": lambda: consume(of_jpegs(jpegs)),
            f"JPEG, webdataset, crops of {CROP}": lambda: consume(crop(x) for x in of_jpegs(jpegs)),
            "ours, D's pictures, whole": ours(),
            f"ours, D's pictures, crops of {CROP}": ours(crop=CROP),
            f"ours, corrected in 2 steps, crops of {CROP}": ours(crop=CROP, decoding="corrected"),
            "ours, latents": ours(latents=True),
        }
        seconds = interleaved(actions, arguments.rounds)
        tile = Settings().tile_for(arguments.height, arguments.width)
        version = load_codec(codec).config.file_version
    rows: list[Row] = [
        {"": name, "pictures/s": arguments.pictures / float(np.median(taken)), "of webdataset's": float(
            np.median([of_jpeg / own for of_jpeg, own in zip(seconds["JPEG, webdataset, whole"], taken, strict=True)])
        )}
        for name, taken in seconds.items()
    ]  # fmt: skip
    report(
        f"{arguments.preset}, files of version {version}, {arguments.pictures} pictures of "
        f"{arguments.width}x{arguments.height} ({f'tiles of {tile}' if tile else 'no tiles'}), one thread, medians of "
        f"{arguments.rounds} rounds in turns", rows, arguments.json,
    )  # fmt: skip


def in_a_tar(pictures: Path) -> str:
    """The same files in a tar beside their folder, for webdataset; returns its name."""
    name = f"{pictures}.tar"
    with tarfile.open(name, "w") as tar:
        for file in sorted(pictures.iterdir()):
            add_member(tar, file.name, file.read_bytes())
    return name


def of_jpegs(tar: str) -> Iterable[np.ndarray]:
    """The pictures of a tar as webdataset reads them."""
    return (each["jpg"] for each in wds.WebDataset(tar, shardshuffle=False).decode("rgb8"))


def crop(x_HWC: np.ndarray) -> np.ndarray:
    """A square of a picture, anywhere."""
    y, x = (np.random.randint(side - CROP + 1) for side in x_HWC.shape[:2])
    return np.ascontiguousarray(x_HWC[y : y + CROP, x : x + CROP])


def consume(values: Iterable[object]) -> None:
    for _ in values:
        pass


if __name__ == "__main__":
    main()
