"""One picture: `encode`, `decode`, `inspect`; the table of metrics. This package alone is enough.

Torch is imported only when it is needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from corrdiff.command_line import run_program
from corrdiff.config import BUILTIN
from corrdiff.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Encode:
    """Compress one picture to a .crdf file.

    Example: corrdiff encode photo.jpg

    Example: corrdiff encode photo.jpg small.crdf --codec runs/demo/codec --quality 1 --fidelity 0.5
    """

    image: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="IMAGE")]
    """JPEG, PNG, WebP, TIFF, GIF, BMP, AVIF or PPM."""
    out: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[OUT]")] = None
    """The .crdf file to write; beside the picture where it is not given."""
    codec: str = BUILTIN
    """Codec directory, as 'corrdiff export' writes it; builtin:tiny comes with this package."""
    quality: float = 4
    """Rate: 0 (smallest file) to 7 (best picture), in steps of 1/16."""
    fidelity: float = 0.5
    """1 asks for the least distortion, 0 for the most natural texture."""
    steps: int | None = None
    """Network evaluations, 1 to 64, or 0 for D's picture alone; the codec's default where it is not given."""
    tile: int | None = None
    """Side of a tile in pixels, which bounds the memory: a multiple of 64 from 256 on, or 0 for none. 1024 for pictures
    of more than 4 megapixels where it is not given."""
    criterion: Literal["texture", "lpips"] = "texture"
    """What fidelity is weighed against: local statistics that need no weights, or LPIPS, which needs AlexNet's."""
    lpips_weights: Path | None = None
    """File with torchvision's AlexNet weights; looked for under TORCH_HOME where it is not given."""
    max_pixels: int = 1 << 28
    """Refuse larger pictures."""
    reconstruction: Path | None = None
    """Write the picture that a decoder will show to this PNG."""
    overwrite: bool = False
    """Write over files that exist, but never over the picture itself."""
    device: str = "cpu"
    """Where the networks run: cpu, cuda, cuda:1 ..."""
    precision: Literal["fp32", "bf16"] | None = None
    """Arithmetic of the networks; where it is not given, bf16 on GPUs and on CPUs that compute in it."""

    def run(self) -> None:
        """Encode the picture, write the file and print its rate."""
        from corrdiff.config import Settings
        from corrdiff.images import open_image, save_png

        settings = Settings(self.quality, self.fidelity, self.steps, self.tile)
        out = self.out or self.image.with_suffix(".crdf")
        _check_free(self.overwrite, self.image, *filter(None, (out, self.reconstruction)))
        opened = open_image(_read(self.image), self.max_pixels)
        weights = (self.lpips_weights,) if self.criterion == "lpips" else None
        codec = _load(self.codec, self.device, self.precision, weights)
        with _progress("encoding") as on_tile:
            encoded = codec.compress_batch([opened.pixels], settings, on_tile)[0]
        _write(out, encoded.data, self.overwrite)
        if self.reconstruction is not None:
            _write(self.reconstruction, save_png(encoded.reconstruction), self.overwrite)
        height, width = opened.pixels.shape[:2]
        changes = f" ({', '.join(opened.changes)})" if opened.changes else ""
        print(f"{out}: {width}x{height}{changes}, {len(encoded.data):,} bytes, {encoded.bpp:.4f} bpp")


@dataclasses.dataclass(frozen=True)
class Decode:
    """Decompress one .crdf file to a PNG.

    Example: corrdiff decode photo.crdf

    Example: corrdiff decode small.crdf picture.png --codec runs/demo/codec

    Example: corrdiff decode large.crdf part.png --box 3000,2000,512,512
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The .crdf file."""
    out: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[OUT]")] = None
    """The PNG to write; beside the file where it is not given."""
    codec: str = BUILTIN
    """The codec directory that the file was written with; builtin:tiny comes with this package."""
    decoding: Literal["corrected", "uncorrected", "privileged"] = "corrected"
    """corrected is the picture; privileged (D alone) and uncorrected (the score network alone) are for comparison."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X,Y,WIDTH,HEIGHT")] = None
    """Only that part of the picture, in pixels; of a large picture only the tiles over it are decoded."""
    thumbnail: bool = False
    """A quick look: D's picture, without the score network."""
    max_pixels: int = 1 << 28
    """Refuse larger pictures."""
    overwrite: bool = False
    """Write over a picture that exists, but never over the file itself."""
    device: str = "cpu"
    """Where the networks run: cpu, cuda, cuda:1 ..."""
    precision: Literal["fp32", "bf16"] | None = None
    """Arithmetic of the networks; where it is not given, bf16 on GPUs and on CPUs that compute in it."""

    def run(self) -> None:
        """Decode the file and write the picture."""
        from corrdiff.format import bitstream
        from corrdiff.images import save_png

        if self.thumbnail and self.decoding != "corrected":
            raise UsageError(f"--thumbnail and --decoding {self.decoding}: give one of them")
        box = None if self.box is None else _box(self.box)
        data = _read(self.file)
        out = self.out or self.file.with_suffix(".png")
        _check_free(self.overwrite, self.file, out)
        bitstream.unpack(data, max_pixels=self.max_pixels)
        codec = _load(self.codec, self.device, self.precision)
        decoding = "privileged" if self.thumbnail else self.decoding
        with _progress("decoding") as on_tile:
            picture = codec.decompress_batch([data], decoding, self.max_pixels, on_tile, box)[0]
        _write(out, save_png(picture), self.overwrite)
        print(f"{out}: {picture.shape[1]}x{picture.shape[0]}")


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Say what is in a .crdf file, as JSON; needs no codec.

    Example: corrdiff inspect photo.crdf

    Example: corrdiff inspect photo.crdf --map made-up.png
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """The .crdf file."""
    made_up: Annotated[Path | None, tyro.conf.arg(name="map")] = None
    """Write a grey PNG that says where and how much of the picture the score network made up, by the factors of the
    last step: black is D's picture, white has nothing of it."""
    overwrite: bool = False
    """Write over a picture that exists, but never over the file itself."""

    def run(self) -> None:
        """Print what is in the file."""
        from corrdiff.format import bitstream

        data = _read(self.file)
        parsed = bitstream.unpack(data)
        if self.made_up is not None:
            from corrdiff import coding
            from corrdiff.images import save_png

            _check_free(self.overwrite, self.file, self.made_up)
            _write(self.made_up, save_png(coding.made_up(parsed)), self.overwrite)
        header, tiles = parsed
        print(
            json.dumps(
                {
                    **dataclasses.asdict(header),
                    "fingerprint": header.fingerprint.hex(),
                    "bytes": len(data),
                    "bpp": 8 * len(data) / (header.width * header.height),
                    "factor_bytes": sum(len(t.factors) for t in tiles),
                    "z_bytes": sum(len(t.z) for t in tiles),
                    "y_bytes": sum(len(t.y) for t in tiles),
                },
                indent=1,
            )
        )


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The table of metrics: which way is better, what computes each, what it needs, and whether this machine has it.

    Example: corrdiff metrics
    """

    weights: str | None = None
    """Directory with networks' files; where torch keeps its downloads (TORCH_HOME) where it is not given."""

    def run(self) -> None:
        """Print the table."""
        from rich.console import Console
        from rich.table import Table

        from corrdiff import metrics

        table = Table(box=None, pad_edge=False)
        for column in ("metric", "better", "of each", "by", "its network's file", "here"):
            table.add_column(column, overflow="fold")
        for each, rows in (("picture", metrics.METRICS), ("set", metrics.SET_METRICS)):
            for metric in rows:
                better = {"higher": "higher", "lower": "lower", "one": "near 1"}[metric.better]
                by = ", ".join(f"{name} {metrics.version_of(name) or '?'}" for name in metric.packages) or "corrdiff"
                file = metric.network.backbone.file if metric.network else ""
                absent = metrics.missing(metric, self.weights)
                table.add_row(metric.name, better, each, by, file, f"no: {absent}" if absent else "yes")
        console = Console()
        Console(width=console.width if console.is_terminal else 200).print(table)


CodecCommands = (
    Annotated[Encode, tyro.conf.subcommand("encode")]
    | Annotated[Decode, tyro.conf.subcommand("decode")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[Metrics, tyro.conf.subcommand("metrics")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m corrdiff` and give its exit code."""
    return run_program(CodecCommands, "python -m corrdiff", "Encode and decode single pictures.", argv)


@contextlib.contextmanager
def _progress(doing: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar over the tiles of a large picture, where someone looks on."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)

    def on_tile(done: int, total: int) -> None:
        if total > 1 and bar.console.is_terminal:
            if not bar.tasks:
                bar.add_task(f"{doing}, tiles", total=total)
                bar.start()
            bar.update(bar.task_ids[0], completed=done)

    try:
        yield on_tile
    finally:
        if bar.tasks:
            bar.stop()


def _load(codec: str, device: str, precision: Any, lpips_weights: tuple[Path | None] | None = None) -> Any:
    """Load a codec, with LPIPS as its criterion where `lpips_weights` holds its file, or None for the usual place."""
    import torch

    from corrdiff.codec_directory import load_codec

    try:
        if torch.empty(0, device=device).is_meta:
            raise UsageError("--device meta computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    if lpips_weights is None:
        return load_codec(codec, device, precision)
    from corrdiff import perceptual

    path = perceptual.lpips_weights(lpips_weights[0])
    if path is None:
        raise UsageError(perceptual.missing_lpips_sentence())
    return load_codec(codec, device, precision, perceptual.lpips_map(path, device))


def _box(text: str) -> tuple[int, ...]:
    """Read X,Y,WIDTH,HEIGHT."""
    if not re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9}){3}", text):
        raise UsageError(f"--box must be X,Y,WIDTH,HEIGHT in pixels, say 3000,2000,512,512, not {text}")
    return tuple(map(int, text.split(",")))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _check_free(overwrite: bool, read: Path, *written: Path) -> None:
    """Raises `UsageError` where a file that is to be written is the one that is read, is there, or is named twice."""
    for i, out in enumerate(written):
        if out.is_dir():
            raise UsageError(f"cannot write {out}: Is a directory")
        if out.exists() and read.exists() and out.samefile(read):
            raise UsageError(f"{out} is what is read: name another file to write")
        if out in written[:i]:
            raise UsageError(f"{out} is named twice: name another file to write")
        if not overwrite and os.path.lexists(out):
            raise UsageError(f"{out} exists: name another file to write, or say --overwrite")


def _write(path: Path, data: bytes, overwrite: bool) -> None:
    """Write a file whole or not at all."""
    temporary = path.parent / f".corrdiff-{uuid.uuid4().hex}.tmp"
    try:
        temporary.write_bytes(data)
        if not overwrite:
            with contextlib.suppress(PermissionError, NotImplementedError):  # a disk without hard links
                os.link(temporary, path)
                return
        temporary.replace(path)
    except FileExistsError:
        raise UsageError(f"{path} exists: name another file to write, or say --overwrite") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
