"""Do symbols, y_hat and noise come out the same whatever the machine is told to do? And what would floats do?

Draws random latents (y, z) of several sizes and qualities, finds symbols, scale indexes and y_hat on every setting of
threads, memory format, batch, precision, oneDNN and device, and compares with the first setting to the bit; what the
first setting coded is decoded on every setting, too. Of a codec without context the float network beside it is that
from which its integers were made, as codecs commonly use it. Then a file is written on each setting and read on every
other.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.measure import Row, parser, report
from corrdiff import coding, metrics
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.codec_directory import load_codec, load_networks
from corrdiff.config import QUALITIES, QUALITY_PARTS, TransformConfig
from corrdiff.format import bitstream
from corrdiff.format.entropy_tables import LatentStreams
from corrdiff.format.latent_models import SCALE_LEVELS, Hyperprior
from corrdiff.format.noise import format_noise
from corrdiff.images import open_image
from corrdiff.networks.model import CorrDiffModel
from corrdiff.picture import Picture
from pipelines.files import storage
from pipelines.inputs import sources

SHAPES = ((2, 2), (1, 1), (1, 3))
"""Of the draws' hyperlatents, in turn: pictures of 128x128, 64x64 and 192x64."""

Y_HAT = 2
COMPARED = {"ours": ("symbols", "indexes", "y_hat"), "decoded": ("y_hat",), "float": ("symbols", "indexes", "y_hat")}
"""What of each draw, by the codec's integers, of what the first setting coded, and by the float network."""

Digests = tuple[bytes, ...]


class Setting(NamedTuple):
    threads: int
    channels_last: bool
    batch: int
    bf16: bool
    onednn: bool
    device: str

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        precision = "bf16" if self.bf16 else "fp32"
        onednn = "" if self.device != "cpu" else ", oneDNN" if self.onednn else ", no oneDNN"
        return f"{self.device}, {self.threads} thr, {layout}, batch {self.batch}, {precision}{onednn}"


@contextlib.contextmanager
def applied(setting: Setting) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        with (
            torch.backends.mkldnn.flags(enabled=setting.onednn),
            torch.autocast(setting.device, torch.bfloat16, enabled=setting.bf16),
            torch.inference_mode(),
        ):
            yield
    finally:
        torch.set_num_threads(before)


def settings() -> list[Setting]:
    options = itertools.product((1, 2), (False, True), (1, 8), (False, True), (True, False))
    found = [Setting(*option, "cpu") for option in options]
    if torch.cuda.is_available():
        on_gpu = itertools.product((False, True), (1, 8), (False, True))
        found += [Setting(1, *option, True, "cuda") for option in on_gpu]
    return found


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--codec", required=True, help="codec directory, trained best")
    made.add_argument("--draws", type=int, default=10_000)
    made.add_argument("--images", default="sample:held-out", help="pictures for the table of files")
    arguments = made.parse_args()
    report(
        f"draws of {arguments.draws:,} (y, z) in which something differs from the first setting",
        draw_rows(arguments.codec, arguments.draws),
        arguments.json,
    )
    places = sources.list_pictures(arguments.images)
    originals = [open_image(sources.read(s)).pixels for s in places]
    rows, spread = file_rows(storage.absolute(arguments.codec), originals)
    report(f"{len(originals)} pictures written on each setting, read on every setting", rows, arguments.json)
    print(f"largest difference between two settings' mean PSNR: {spread:.4f} dB")


class Draws(NamedTuple):
    """Latents of one size."""

    y_NMhw: Tensor
    z_hat_NNuv: Tensor
    quality_N: Tensor
    """In sixteenths."""

    def batches(self, size: int) -> Iterator[slice]:
        """Yield so many at a time, in order."""
        return (slice(start, start + size) for start in range(0, len(self.y_NMhw), size))


def draw_rows(codec_uri: str, draws: int) -> list[Row]:
    """For each setting: how many draws differ in anything that entropy decoding depends on."""
    model, tables, _ = load_networks(codec_uri)
    model.eval()
    every = _draws(model.config.transform, draws)
    coded = [tables.code(tables.quantise(*drawn)[0]) for drawn in every]
    reference: dict[str, list[Digests]] = {}
    rows = []
    for setting in settings():
        found = _found(codec_uri, model, every, coded, setting)
        if not reference:
            reference = found | {"decoded": [(digests[Y_HAT],) for digests in found["ours"]]}
        row: Row = {"setting": str(setting)}
        for name, digests in found.items():
            for i, part in enumerate(COMPARED[name]):
                row[f"{name}: {part}"] = sum(a[i] != b[i] for a, b in zip(digests, reference[name], strict=True))
        row["noise"] = hashlib.sha256(format_noise(256, 256).numpy().tobytes()).hexdigest()[:8]
        rows.append(row)
    return rows


def _draws(transform: TransformConfig, draws: int) -> list[Draws]:
    """Spread as a trained codec's are: most hyperlatents near zero, a few far out."""
    generator = torch.Generator().manual_seed(0)
    every = []
    for i, (rows, columns) in enumerate(SHAPES):
        count = len(range(i, draws, len(SHAPES)))
        spread = torch.rand(count, 1, 1, 1, generator=generator) * 4
        z = spread * torch.randn(count, transform.hyper_channels, rows, columns, generator=generator)
        y = 4 * spread * torch.randn(count, transform.latent_channels, 4 * rows, 4 * columns, generator=generator)
        every.append(
            Draws(y, z.round(), torch.randint((QUALITIES - 1) * QUALITY_PARTS + 1, (count,), generator=generator))
        )
    return every


def _found(
    codec_uri: str, model: CorrDiffModel, every: list[Draws], coded: list[list[LatentStreams]], setting: Setting
) -> dict[str, list[Digests]]:
    """What of each draw is compared, on one setting."""
    device = torch.device(setting.device)
    tables = load_networks(codec_uri)[1]
    tables.run_on(device)
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    floats = model.to(device).to(memory_format=layout).entropy.hyper_synthesis
    found: dict[str, list[Digests]] = {"ours": [], "decoded": []}
    if isinstance(tables.model, Hyperprior):
        found["float"] = []
    with applied(setting):
        for drawn, streams in zip(every, coded, strict=True):
            for batch in drawn.batches(setting.batch):
                y, z_hat = (t[batch].to(device).contiguous(memory_format=layout) for t in drawn[:2])
                quality_B = drawn.quality_N[batch]
                symbols, _ = tables.quantise(y, z_hat, quality_B)
                found["ours"] += [_digests(s.y_n, s.index_n, s.y_hat_Mhw) for s in symbols]
                rows, columns = z_hat.shape[2:]
                found["decoded"] += map(
                    _digests, tables.decode(streams[batch], (rows, columns), quality_B).cpu().numpy()
                )
                if "float" in found:
                    found["float"] += map(_digests, *_float(y, *floats(z_hat)))
    return found


def _float(y: Tensor, mean: Tensor, index: Tensor) -> list[npt.NDArray[np.float32]]:
    """What a codec with a float H_s would use: m as it comes, the scale's index rounded to the table."""
    mean = mean.float()
    symbols = (y - mean).round()
    parts = symbols, index.float().round().clamp(0, SCALE_LEVELS - 1), symbols + mean
    return [part.cpu().numpy() for part in parts]


def _digests(*parts: npt.NDArray[Any]) -> Digests:
    """Of each part, to the bit."""
    return tuple(hashlib.sha256(np.ascontiguousarray(part).tobytes()).digest()[:8] for part in parts)


def file_rows(codec_uri: str, originals: list[Picture]) -> tuple[list[Row], float]:
    """Files written on each setting, read on every other; y_hat compared to the bit, pictures by PSNR."""
    used = [s for s in settings() if s.batch == 1]
    codecs = {
        s: load_codec(codec_uri, s.device, "bf16" if s.bf16 else "fp32")
        for s in {s._replace(threads=1, channels_last=False, onednn=True): None for s in used}
    }

    def on(s: Setting) -> CorrDiffCodec:
        layout = torch.channels_last if s.channels_last else torch.contiguous_format
        codec = codecs[s._replace(threads=1, channels_last=False, onednn=True)]
        codec.model.to(memory_format=layout)
        return codec

    version = codecs[used[0]].config.file_version
    asked = Settings(quality=4 if version == 1 else 4.3125, fidelity=0.5)
    files = {}
    for s in used:
        with applied(s._replace(bf16=False)):
            files[s] = [on(s).compress_batch([o], asked)[0].data for o in originals]
    first = codecs[used[0]._replace(threads=1)]
    expected = {s: [_latent(first, data) for data in written] for s, written in files.items()}
    rows, means = [], []
    for s in used:
        different, latents, psnrs = 0, 0, []
        with applied(s._replace(bf16=False)):
            codec = on(s)
            for writer in used:
                for original, data, y_hat in zip(originals, files[writer], expected[writer], strict=True):
                    latents += 1
                    different += not np.array_equal(y_hat, _latent(codec, data))
                    if writer in (used[0], s, used[-1]):  # the whole picture takes seconds
                        psnrs.append(metrics.psnr(original, codec.decompress(data)))
        means.append(statistics.mean(psnrs))
        psnr = f"{means[-1]:.4f}"
        rows.append({"read on": str(s), "y_hat read": latents, "y_hat that differ": different, "mean PSNR dB": psnr})
    return rows, max(means) - min(means)


def _latent(codec: CorrDiffCodec, data: bytes) -> Picture:
    """y_hat of an untiled file."""
    parsed = bitstream.unpack(data, codec.fingerprint)
    tile = next(iter(coding.layout_of(parsed.header)))
    latent: Picture = coding.read_latents([parsed], tile, codec.tables).cpu().numpy()
    return latent


if __name__ == "__main__":
    main()
