"""Do symbols, m and noise come out the same whatever the machine is told to do? And what would floats do?

Draws random latents (y, z), finds scale indexes and m on every setting of threads, memory format, batch, precision,
oneDNN and device, and compares with the first setting to the bit: by the codec's integer H_s, and by the float network
that it was made from, as codecs commonly do. Then a file is written on each setting and read on every other.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import statistics
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Row, parser, report
from corrdiff import coding, metrics
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.codec_directory import load_codec, load_networks
from corrdiff.format import bitstream
from corrdiff.format.latent_models import MEAN_FRACTION_BITS
from corrdiff.format.noise import format_noise
from corrdiff.images import open_image
from corrdiff.picture import Picture
from pipelines.files import storage
from pipelines.inputs import sources

SHAPE = 2
"""Draws have a hyperlatent of 2x2, a picture of 128x128."""


PARTS = ("m", "indexes", "symbols")


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


def draw_rows(codec_uri: str, draws: int) -> list[Row]:
    """For each setting: how many draws differ in anything that entropy decoding depends on."""
    generator = torch.Generator().manual_seed(0)
    model, _, _ = load_networks(codec_uri)
    model.eval()
    n, m = model.config.transform.hyper_channels, model.config.transform.latent_channels
    # Spread as a trained codec's are: most hyperlatents near zero, a few far out.
    spread = torch.rand(draws, 1, 1, 1, generator=generator) * 4
    z = spread * torch.randn(draws, n, SHAPE, SHAPE, generator=generator)
    y = 4 * spread * torch.randn(draws, m, 4 * SHAPE, 4 * SHAPE, generator=generator)
    reference: dict[str, list[list[bytes]]] = {}
    rows = []
    for setting in settings():
        device = torch.device(setting.device)
        tables = load_networks(codec_uri)[1]
        tables.run_on(device)
        layout = torch.channels_last if setting.channels_last else torch.contiguous_format
        floats = model.to(device).to(memory_format=layout).entropy.hyper_synthesis
        found: dict[str, list[list[bytes]]] = {"ours": [], "float": []}
        with applied(setting):
            for start in range(0, draws, setting.batch):
                z_hat = z[start : start + setting.batch].round().to(device).contiguous(memory_format=layout)
                y_batch = y[start : start + setting.batch].to(device).contiguous(memory_format=layout)
                for name, (mean, index) in (
                    ("ours", tables.model.mean_and_index(z_hat)),
                    ("float", _float(*floats(z_hat))),
                ):
                    symbols = (y_batch - mean.to(device)).round()
                    found[name] += [_digest(*row) for row in zip(mean, index, symbols, strict=True)]
            noise = format_noise(256, 256).numpy().tobytes()
        row: Row = {"setting": str(setting)}
        for name, digests in found.items():
            expected = reference.setdefault(name, digests)
            for i, part in enumerate(PARTS):
                row[f"{name}: {part}"] = sum(a[i] != b[i] for a, b in zip(digests, expected, strict=True))
        row["noise"] = hashlib.sha256(noise).hexdigest()[:8]
        rows.append(row)
    return rows


def _float(mean: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """What a codec with a float H_s would use: m as it comes, the scale's index rounded to the table."""
    return mean.float(), index.float().round().clamp(0, 63)


def _digest(mean: Tensor, index: Tensor, symbols: Tensor) -> list[bytes]:
    """Of each of `PARTS`, to the bit."""
    parts = (mean.float() * 2**MEAN_FRACTION_BITS, index.to(torch.int32), symbols.to(torch.int32))
    return [hashlib.sha256(p.cpu().contiguous().numpy().tobytes()).digest()[:8] for p in parts]


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

    files = {}
    for s in used:
        with applied(s._replace(bf16=False)):
            files[s] = [on(s).compress_batch([o], Settings(quality=4, fidelity=0.5))[0].data for o in originals]
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
