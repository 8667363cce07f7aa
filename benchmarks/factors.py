"""Do the fitted factors earn their bytes?

On pictures that the codec has not seen: the fidelity sweep (bytes, PSNR, texture error, histograms of the factors); on
the same weights the paper's own construction (from noise, a factor a step, least squares) beside ours; and fitted
factors against the best constant factor and one fitted factor a step for the whole picture. What is compared has equal
total bytes: what an alternative saves or spends on factors is given to or taken from the latents' bytes by
interpolation between quality levels.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.measure import Row, parser, report
from corrdiff import metrics, ssimulacra2
from corrdiff.codec import CorrDiffCodec, Encoded, Settings
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
    arguments = made.parse_args()
    places = sources.list_pictures(arguments.images)
    places = places[:: max(1, len(places) // arguments.limit)][: arguments.limit]
    originals = [open_image(sources.read(s)).pixels for s in places]
    codec = load_codec(arguments.codec)
    ours = codec.config.diffusion
    whole = _with(arguments.codec, dataclasses.replace(ours, grid=0))
    quality = arguments.quality

    files = {f: [_encode(codec, o, quality, f) for o in originals] for f in sorted(FIDELITIES + BETWEEN)}
    reference = [e.data for e in files[1.0]]
    d = _point([len(x) for x in reference], originals, [codec.decompress(x, "privileged") for x in reference])
    u = _point([len(x) for x in reference], originals, [codec.decompress(x, "uncorrected") for x in reference])
    slope = _per_log_byte(codec, originals, quality)

    def row(what: str, point: Point) -> Row:
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

    rows, fitted = [row("D alone", d), row("uncorrected", u)], {}
    for f, encoded in files.items():
        fitted[f] = _point([len(e.data) for e in encoded], originals, [e.reconstruction for e in encoded])
        rows.append(row(f"fitted, fidelity {f:g}", fitted[f]))
    title = f"{len(originals)} pictures, quality {quality}, {ours.steps} steps"
    report(f"{title}; shares are of the way from D to uncorrected", rows, arguments.json)
    sweep = sorted((r["PSNR given %"], r["texture gained %"]) for r in rows[2:])
    gained = np.interp(PRICE, [given for given, _ in sweep], [gained for _, gained in sweep])
    print(f"for {PRICE:.0f}% of the PSNR: {gained:.0f}% of the texture (interpolated)")

    factor_bytes = statistics.mean(sum(len(t.factors) for t in bitstream.unpack(data).tiles) for data in reference)
    total = fitted[1.0].bytes
    rows = [row("D alone", _at(total, d._replace(bytes=d.bytes - factor_bytes), slope))]
    rows += [row(f"grid, fidelity {f:g}", _at(total, fitted[f], slope)) for f in (1.0, 0.5, 0.0)]
    paper = _with(arguments.codec, ours.corrected_by("paper"))
    for steps in (ours.steps, MORE_STEPS * ours.steps):
        encoded = [paper.compress_batch([o], Settings(quality, steps=steps))[0] for o in originals]
        point = _point([len(e.data) for e in encoded], originals, [e.reconstruction for e in encoded])
        rows.append(row(f"paper, {steps} steps", _at(total, point, slope)))
        alone = _point([len(e.data) for e in encoded], originals, [_uncorrected(paper, e.data) for e in encoded])
        rows.append(row(f"uncorrected, {steps} steps", _at(total, alone, slope)))
        factors = np.mean([e.factors[0].ravel() for e in encoded], axis=0) / ((1 << ours.factor_bits) - 1)
        print(f"mean factor of each of {steps} steps:", " ".join(f"{g:.2f}" for g in factors))
    report("the paper's construction and ours on the same weights, at equal total bytes", rows, arguments.json)

    rows = []
    constants = _constants(codec, originals, reference)
    for f in FIDELITIES:
        rows.append({"fidelity": f, **row("fitted, a factor a cell", fitted[f])})
        encoded = [_encode(whole, o, quality, f) for o in originals]
        point = _point([len(e.data) for e in encoded], originals, [e.reconstruction for e in encoded])
        rows.append({"fidelity": f, **row("fitted, a factor a picture", _at(fitted[f].bytes, point, slope))})
        best = min(constants, key=lambda name, f=f: _criterion(constants[name], d, f))  # type: ignore[misc]
        rows.append({"fidelity": f, **row(f"constant {best}", _at(fitted[f].bytes, constants[best], slope))})
    report("at equal total bytes", rows, arguments.json)

    bits = ours.factor_bits
    rows = []
    for f in FIDELITIES:
        encoded = files[f]
        for plane, name in ((factor_coding.LOW, "low"), (factor_coding.HIGH, "high")):
            levels = np.concatenate([t[:, plane].ravel() for e in encoded for t in e.factors])
            share = np.bincount(levels, minlength=1 << bits) / len(levels)
            rows.append({"fidelity": f, "plane": name} | {str(i): round(float(s), 2) for i, s in enumerate(share)})
    report("histograms of the factors' levels (share of all)", rows, arguments.json)


def _with(uri: str, diffusion: DiffusionConfig) -> CorrDiffCodec:
    """The same weights, corrected in another way."""
    model, tables, digest = load_networks(uri, for_training=False)
    model.config = dataclasses.replace(model.config, diffusion=diffusion)
    return CorrDiffCodec(model, tables, bytes.fromhex(digest)[:8], precision=default_precision("cpu"))


def _uncorrected(codec: CorrDiffCodec, data: bytes) -> Picture:
    return codec.decompress(data, "uncorrected")


def _encode(codec: CorrDiffCodec, original: Picture, quality: int, fidelity: float) -> Encoded:
    return codec.compress_batch([original], Settings(quality, fidelity))[0]


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


def _per_log_byte(codec: CorrDiffCodec, originals: list[Picture], quality: int) -> Point:
    """How everything moves with the logarithm of the bytes, from the neighbouring quality levels."""
    ends = []
    for q in (max(0, quality - 1), min(7, quality + 1)):
        encoded = [_encode(codec, o, q, 0.5) for o in originals]
        ends.append(_point([len(e.data) for e in encoded], originals, [e.reconstruction for e in encoded]))
    span = math.log(ends[1].bytes / ends[0].bytes)
    return Point(*((after - before) / span for before, after in zip(*ends, strict=True)))


def _at(total: float, point: Point, slope: Point) -> Point:
    """A point moved along the rate-distortion slope to a total of bytes."""
    more = math.log(total / point.bytes)
    return Point(*(value + gain * more for value, gain in zip(point, slope, strict=True)))._replace(bytes=total)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
