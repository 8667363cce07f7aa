"""Our entropy coder against CompressAI's, on the same symbols and the same tables, in turns.

The peers are `GaussianConditional.compress` and `decompress` as a CompressAI user calls them, and CompressAI's rANS
called directly with its lists prepared. The symbols are Gaussian, their scales spread over the table as those of a
trained codec at about 0.5 bpp. Also: what the integer H_s costs against the float one that was trained, given a codec.
"""

from __future__ import annotations

import os
import statistics

import numpy as np
import torch
from compressai.ans import RansDecoder, RansEncoder
from compressai.entropy_models import GaussianConditional

from benchmarks.measure import Row, interleaved, parser, ratio, report
from corrdiff.codec_directory import load_codec, load_networks
from corrdiff.format.entropy_tables import _over_cores
from corrdiff.format.latent_models import QUALITY_PARTS, SCALE_LEVELS
from corrdiff.format.range_coder import RangeTables
from corrdiff.images import open_image
from corrdiff.networks.entropy_model import SCALE_LOG_STEP, SCALE_MIN, scale_of_index
from pipelines.inputs import sources

ROWS, COLUMNS = 512 // 16, 768 // 16
BATCH = 16


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--codec", help="a trained codec directory, for the rate of its integer H_s")
    made.add_argument("--images", default="sample:", help="pictures for it, at most 20")
    arguments = made.parse_args()

    rows = [row for channels in (192, 320) for row in coder_rows(channels, arguments.rounds)]
    title = f"768x512, one thread, medians of {arguments.rounds} rounds in turns; ratio = peer's time over ours"
    report(title, rows, arguments.json)
    report(
        f"a batch of {BATCH} pictures, {os.cpu_count()} cores; speed-up over one thread, medians",
        [row for channels in (192, 320) for row in batch_rows(channels, arguments.rounds)],
        arguments.json,
    )
    if arguments.codec:
        report(
            "bits of the latents with H_s in integers and in floats",
            rate_rows(arguments.codec, arguments.images),
            arguments.json,
        )


class Problem:
    """Symbols of one picture and the tables of both coders."""

    def __init__(self, channels: int, seed: int = 0) -> None:
        self.gaussian = GaussianConditional(scale_of_index(torch.arange(float(SCALE_LEVELS))).tolist())
        self.gaussian.update()
        tables = (self.gaussian.quantized_cdf, self.gaussian.cdf_length, self.gaussian.offset)
        self.ours = RangeTables("y", *(t.numpy() for t in tables))
        self.cdfs, self.lengths, self.offsets = (t.tolist() for t in tables)
        rng = np.random.default_rng(seed)
        n = channels * ROWS * COLUMNS
        self.indexes = np.clip(np.round(rng.gamma(1.2, 9.0, n)), 0, SCALE_LEVELS - 1).astype(np.uint8)
        scales = SCALE_MIN * np.exp(self.indexes * SCALE_LOG_STEP)
        self.symbols = np.round(rng.normal(0, scales)).astype(np.int32)
        shape = (1, channels, ROWS, COLUMNS)
        self.y = torch.from_numpy(self.symbols.astype(np.float32)).reshape(shape)
        self.index_tensor = torch.from_numpy(self.indexes.astype(np.int32)).reshape(shape)


def coder_rows(channels: int, rounds: int) -> list[Row]:
    torch.set_num_threads(1)
    p = Problem(channels)
    symbols, indexes = p.symbols.tolist(), p.indexes.tolist()
    data = p.ours.encode(p.symbols, p.indexes)
    peer = p.gaussian.compress(p.y, p.index_tensor)
    lists = RansEncoder().encode_with_indexes(symbols, indexes, p.cdfs, p.lengths, p.offsets)
    assert np.array_equal(p.ours.decode(data, p.indexes), p.symbols)
    assert torch.equal(p.gaussian.decompress(peer, p.index_tensor), p.y)
    table = (p.cdfs, p.lengths, p.offsets)
    times = interleaved(
        {
            "ours encode": lambda: p.ours.encode(p.symbols, p.indexes),
            "compressai compress": lambda: p.gaussian.compress(p.y, p.index_tensor),
            "compressai rANS encode": lambda: RansEncoder().encode_with_indexes(symbols, indexes, *table),
            "ours decode": lambda: p.ours.decode(data, p.indexes),
            "compressai decompress": lambda: p.gaussian.decompress(peer, p.index_tensor),
            "compressai rANS decode": lambda: RansDecoder().decode_with_indexes(lists, indexes, *table),
        },
        rounds,
    )
    rows = []
    for name, seconds in times.items():
        ours = times["ours decode" if "dec" in name else "ours encode"]
        rows.append(
            {
                "channels": channels,
                "what": name,
                "symbols": len(symbols),
                "bytes": len(data if name.startswith("ours") else lists if "rANS" in name else peer[0]),
                "ms": 1e3 * statistics.median(seconds),
                "M symbols/s": len(symbols) / statistics.median(seconds) / 1e6,
                "ratio": ratio(seconds, ours),
            }
        )
    return rows


def batch_rows(channels: int, rounds: int) -> list[Row]:
    problems = [Problem(channels, seed) for seed in range(BATCH)]
    files = [p.ours.encode(p.symbols, p.indexes) for p in problems]
    encode = [(p.ours.encode, (p.symbols, p.indexes)) for p in problems]
    decode = [(p.ours.decode, (data, p.indexes)) for p, data in zip(problems, files, strict=True)]

    def on(threads: int, work: list[tuple[object, tuple[object, ...]]]) -> object:
        torch.set_num_threads(threads)
        return _over_cores(lambda call: call[0](*call[1]), work)  # type: ignore[operator]

    cores = os.cpu_count() or 1
    rows = []
    for name, work in (("encode", encode), ("decode", decode)):
        times = interleaved({"one": lambda w=work: on(1, w), "all": lambda w=work: on(cores, w)}, rounds)  # type: ignore[misc]
        symbols = sum(len(p.symbols) for p in problems)
        rows.append(
            {
                "channels": channels,
                "what": name,
                "M symbols/s, one thread": symbols / statistics.median(times["one"]) / 1e6,
                "M symbols/s, all cores": symbols / statistics.median(times["all"]) / 1e6,
                "speed-up": ratio(times["one"], times["all"]),
            }
        )
    return rows


@torch.inference_mode()
def rate_rows(codec_uri: str, uri: str, limit: int = 20) -> list[Row]:
    """Estimated bits of y given float and integer H_s, and real bytes, summed over the pictures."""
    codec = load_codec(codec_uri, precision="fp32")
    model = load_networks(codec_uri)[0].eval()
    entropy = model.entropy
    images = [open_image(sources.read(s)).pixels for s in sources.list_pictures(uri)[:limit]]
    rows = []
    for quality in (0, 2, 4, 6):
        floats = integers = real = estimate = 0.0
        for image in images:
            height, width = (s // 64 * 64 for s in image.shape[:2])
            x = torch.from_numpy(image[:height, :width].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            y, _ = model.latent(x, torch.tensor([quality]))
            z = entropy.hyper_analysis(y)
            estimate += float(entropy(y, torch.tensor([quality]), None, None).bits_B)
            bits_z = -float(entropy.prior(z.round()).log2().sum())
            for integer in (False, True):
                hyper = codec.tables.model.mean_and_index if integer else entropy.hyper_synthesis
                m, index = hyper(z.round())
                scale = scale_of_index(index.float())
                p = entropy.gaussian._likelihood((y - m).round() + m, scale, m)
                bits = bits_z - float(p.clamp(min=1e-9).log2().sum())
                floats, integers = (floats, integers + bits) if integer else (floats + bits, integers)
            streams = codec.tables.code(codec.tables.quantise(y, z, torch.tensor([quality * QUALITY_PARTS]))[0])
            real += 8 * sum(len(s.z) + len(s.y) for s in streams)
        rows.append(
            {
                "quality": quality,
                "pictures": len(images),
                "float H_s, estimated bytes": round(floats / 8),
                "integer H_s, estimated bytes": round(integers / 8),
                "lost %": 100 * (integers / floats - 1),
                "real bytes": round(real / 8),
                "real over float %": 100 * (real / floats - 1),
            }
        )
    return rows


if __name__ == "__main__":
    main()
