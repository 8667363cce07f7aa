"""Do the fitted factors earn their bytes?

On pictures that the codec has not seen: the fidelity sweep (bytes, PSNR, texture error, histograms of the factors); on
the same weights the paper's own construction (from noise, a factor a step, least squares) beside ours; and fitted
factors against the best constant factor and one fitted factor a step for the whole picture. What is compared has equal
total bytes: what an alternative saves or spends on factors is given to or taken from the latents' bytes by
interpolation between quality levels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import Row, parser, report
from corrdiff import metrics, ssimulacra2
from corrdiff.codec import CorrDiffCodec, Decoding, Encoded, Settings
from corrdiff.codec_directory import default_precision, load_codec, load_networks
from corrdiff.config import DiffusionConfig
from corrdiff.format import bitstream, factor_coding
from corrdiff.format.bitstream import Streams
from corrdiff.images import open_image
from corrdiff.picture import Picture
from corrdiff.sliced_wasserstein import sliced_wasserstein
from pipelines.inputs import sources

FIDELITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
BETWEEN = (0.4, 0.45, 0.52, 0.54)
"""Where texture is bought at about the price that the last line of the first table asks for."""
PRICE = 30.0
"""Per cent of the PSNR between D and uncorrected."""
MORE_STEPS = 4
"""The paper's process has farther to go: it is tried with so many times the steps, too."""


class Point(NamedTuple):
    """Means over the pictures, and the sliced Wasserstein distance of their set."""

    bytes: float
    psnr_db: float
    texture_error: float
    ssimulacra2: float
    wasserstein: float


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--codec", required=True, help="trained codec directory")
    made.add_argument("--images", default="sample:held-out", help="pictures that the codec was not trained on")
    made.add_argument("--limit", type=int, default=24, help="spread over the pictures")
    made.add_argument("--quality", type=int, default=4)
    made.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    arguments = made.parse_args()
    places = sources.list_pictures(arguments.images)
    places = places[:: max(1, len(places) // arguments.limit)][: arguments.limit]
    originals = [open_image(sources.read(s)).pixels for s in places]
    measured = Measured(arguments.codec, originals, arguments.quality)
    for name in arguments.tables:
        report(*TABLES[name](measured), arguments.json)


class Measured:
    """Pictures at one quality, and what was made of them so far."""

    def __init__(self, uri: str, originals: list[Picture], quality: int) -> None:
        self.uri, self.originals, self.quality = uri, originals, quality
        self.codec = load_codec(uri)
        self.ours = self.codec.config.diffusion
        self.title = f"{len(originals)} pictures, quality {quality}, {self.ours.steps} steps"
        self._files: dict[float, list[Encoded]] = {}

    def files(self, fidelity: float) -> list[Encoded]:
        if fidelity not in self._files:
            self._files[fidelity] = self.encoded(self.codec, Settings(self.quality, fidelity))
        return self._files[fidelity]

    def encoded(self, codec: CorrDiffCodec, settings: Settings) -> list[Encoded]:
        return [codec.compress_batch([original], settings)[0] for original in self.originals]

    def fitted(self, fidelity: float) -> Point:
        return self.point(self.files(fidelity))

    def point(
        self, encoded: list[Encoded], codec: CorrDiffCodec | None = None, decoding: Decoding = "corrected"
    ) -> Point:
        """As the encoder foresaw the pictures, or as a codec decodes them."""
        shown = [codec.decompress(e.data, decoding) if codec else e.reconstruction for e in encoded]
        return _point([len(e.data) for e in encoded], self.originals, shown)

    @functools.cached_property
    def d(self) -> Point:
        return self.point(self.files(1.0), self.codec, "privileged")

    @functools.cached_property
    def uncorrected(self) -> Point:
        return self.point(self.files(1.0), self.codec, "uncorrected")

    @functools.cached_property
    def slope(self) -> Point:
        """How everything moves with the logarithm of the bytes, from the neighbouring quality levels."""
        levels = max(0, self.quality - 1), min(7, self.quality + 1)
        ends = [self.point(self.encoded(self.codec, Settings(level, 0.5))) for level in levels]
        span = math.log(ends[1].bytes / ends[0].bytes)
        return Point(*((after - before) / span for before, after in zip(*ends, strict=True)))

    def at(self, total: float, point: Point) -> Point:
        """A point moved along the rate-distortion slope to a total of bytes."""
        more = math.log(total / point.bytes)
        moved = Point(*(value + gain * more for value, gain in zip(point, self.slope, strict=True)))
        return moved._replace(bytes=total)

    def row(self, what: str, point: Point) -> Row:
        d, u = self.d, self.uncorrected
        return {
            "what": what,
            "bytes": round(point.bytes),
            "PSNR dB": point.psnr_db,
            "texture error": point.texture_error,
            "SSIMULACRA2": point.ssimulacra2,
            "sliced Wasserstein": point.wasserstein,
            "texture gained %": 100 * (d.texture_error - point.texture_error) / (d.texture_error - u.texture_error),
            "PSNR given %": 100 * (d.psnr_db - point.psnr_db) / (d.psnr_db - u.psnr_db),
        }


def sweep(m: Measured) -> tuple[str, list[Row]]:
    """What the dial does."""
    rows = [m.row("D alone", m.d), m.row("uncorrected", m.uncorrected)]
    rows += [m.row(f"fitted, fidelity {f:g}", m.fitted(f)) for f in sorted(FIDELITIES + BETWEEN)]
    shares = sorted((r["PSNR given %"], r["texture gained %"]) for r in rows[2:])
    gained = np.interp(PRICE, [given for given, _ in shares], [gained for _, gained in shares])
    print(f"for {PRICE:.0f}% of the PSNR: {gained:.0f}% of the texture (interpolated)")
    return f"{m.title}; shares are of the way from D to uncorrected", rows


def constructions(m: Measured) -> tuple[str, list[Row]]:
    """The paper's construction and ours, on the same weights."""
    factor_bytes = statistics.mean(sum(len(t.factors) for t in bitstream.unpack(e.data).tiles) for e in m.files(1.0))
    total = m.fitted(1.0).bytes
    rows = [m.row("D alone", m.at(total, m.d._replace(bytes=m.d.bytes - factor_bytes)))]
    rows += [m.row(f"grid, fidelity {f:g}", m.at(total, m.fitted(f))) for f in (1.0, 0.5, 0.0)]
    paper = _with(m.uri, m.ours.corrected_by("paper"))
    for steps in (m.ours.steps, MORE_STEPS * m.ours.steps):
        encoded = m.encoded(paper, Settings(m.quality, steps=steps))
        rows.append(m.row(f"paper, {steps} steps", m.at(total, m.point(encoded))))
        rows.append(m.row(f"uncorrected, {steps} steps", m.at(total, m.point(encoded, paper, "uncorrected"))))
        factors = np.mean([e.factors[0].ravel() for e in encoded], axis=0) / ((1 << m.ours.factor_bits) - 1)
        print(f"mean factor of each of the paper's {steps} steps:", " ".join(f"{g:.2f}" for g in factors))
    return f"{m.title}: the paper's construction and ours, same weights, equal total bytes", rows


def peers(m: Measured) -> tuple[str, list[Row]]:
    """Fitted factors against fewer of them, and against a constant."""
    rows = []
    constants = _constants(m.codec, m.originals, [e.data for e in m.files(1.0)])
    whole = _with(m.uri, dataclasses.replace(m.ours, grid=0))
    for f in FIDELITIES:
        total = m.fitted(f).bytes
        rows.append({"fidelity": f, **m.row("fitted, a factor a cell", m.fitted(f))})
        point = m.point(m.encoded(whole, Settings(m.quality, f)))
        rows.append({"fidelity": f, **m.row("fitted, a factor a picture", m.at(total, point))})
        best = min(constants, key=lambda name, f=f: _criterion(constants[name], m.d, f))  # type: ignore[misc]
        rows.append({"fidelity": f, **m.row(f"constant {best}", m.at(total, constants[best]))})
    return f"{m.title}, equal total bytes", rows


def histograms(m: Measured) -> tuple[str, list[Row]]:
    """How the factors spread with the dial."""
    rows = []
    for f in FIDELITIES:
        for plane, name in ((factor_coding.LOW, "low"), (factor_coding.HIGH, "high")):
            levels = np.concatenate([t[:, plane].ravel() for e in m.files(f) for t in e.factors])
            share = np.bincount(levels, minlength=1 << m.ours.factor_bits) / len(levels)
            rows.append({"fidelity": f, "plane": name} | {str(i): round(float(s), 2) for i, s in enumerate(share)})
    return "histograms of the factors' levels (share of all)", rows


TABLES: dict[str, Callable[[Measured], tuple[str, list[Row]]]] = {
    "sweep": sweep, "constructions": constructions, "peers": peers, "histograms": histograms,
}  # fmt: skip


def _with(uri: str, diffusion: DiffusionConfig) -> CorrDiffCodec:
    """The same weights, corrected in another way."""
    model, tables, digest = load_networks(uri, for_training=False)
    model.config = dataclasses.replace(model.config, diffusion=diffusion)
    return CorrDiffCodec(model, tables, bytes.fromhex(digest)[:8], precision=default_precision("cpu"))


def _point(sizes: list[int], originals: list[Picture], shown: list[Picture]) -> Point:
    pairs = list(zip(originals, shown, strict=True))
    return Point(
        statistics.mean(sizes),
        statistics.mean(metrics.psnr(a, b) for a, b in pairs),
        statistics.mean(metrics.texture_error(a, b) for a, b in pairs),
        statistics.mean(ssimulacra2.score(a, b) or math.nan for a, b in pairs),
        sliced_wasserstein(originals, shown),
    )


def _constants(codec: CorrDiffCodec, originals: list[Picture], files: list[bytes]) -> dict[str, Point]:
    """The same factor in every cell, step and plane, for each of its levels."""
    bits = codec.config.diffusion.factor_bits
    points = {}
    for level in range(1 << bits):
        changed = [_with_constant(data, level, codec) for data in files]
        point = _point([len(c) for c in changed], originals, [codec.decompress(c) for c in changed])
        points[f"{level / ((1 << bits) - 1):.2f}"] = point
    return points


def _criterion(point: Point, d: Point, fidelity: float) -> float:
    """What the encoder minimises, of means over pictures."""
    return float(fidelity * 10 ** ((d.psnr_db - point.psnr_db) / 10) + (1 - fidelity) * point.texture_error)


def _with_constant(data: bytes, level: int, codec: CorrDiffCodec) -> bytes:
    """The file with one level everywhere, on a grid of one cell, so that it says that in as few bytes as can be."""
    header, tiles = bitstream.unpack(data)
    levels: npt.NDArray[np.uint8] = np.full((header.steps, header.planes, 1, 1), level, np.uint8)
    streams = Streams(factor_coding.encode_factors(levels, header.factor_bits), tiles[0].z, tiles[0].y)
    return bitstream.pack(dataclasses.replace(header, grid=0), [streams])


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
