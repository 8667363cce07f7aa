"""Encode and decode time: against the bare networks, and against a plain diffusion codec of 65 steps.

1. What the codec adds to its networks. "networks" is every network that encoding or decoding runs, on tensors that are
   ready: analysis and H_a (encoding only), D, context network, S evaluations of the score network. "a step" is one pass
   of the sampling loop of a decoder; its peer is the score network's bare forward pass.
2. The peer in spirit: CDC (arXiv 2209.06950) samples with a U-Net at full resolution, 65 steps by default. Its sampler
   is written here plainly from the paper's description, at its size (about 40 M parameters at full resolution); this
   is a stand-in with random weights, not the authors' code.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, interleaved, parser, ratio, report, sample
from corrdiff import correction, diffusion
from corrdiff.codec import CorrDiffCodec, Precision, Settings
from corrdiff.codec_directory import default_precision
from corrdiff.config import PRESETS, T_MAX, preset
from corrdiff.correction import Grid
from corrdiff.networks.model import CorrDiffModel

CDC_STEPS = 65


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--presets", nargs="*", choices=list(PRESETS), default=["tiny", "base"])
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--steps", type=int, default=8)
    made.add_argument("--width", type=int, default=768)
    made.add_argument("--height", type=int, default=512)
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--cdc", type=int, default=256, help="side of CDC's picture; 0 to leave it out")
    arguments = made.parse_args()
    rows = [
        row
        for name in arguments.presets
        for precision in dict.fromkeys(("fp32", default_precision(arguments.device)))
        for row in codec_rows(name, precision, arguments)
    ]
    where = f"{arguments.width}x{arguments.height} on {arguments.device}, {torch.get_num_threads()} threads"
    report(f"{where}, {arguments.steps} steps, medians of {arguments.rounds} rounds in turns", rows, arguments.json)
    if arguments.cdc:
        ours = next(r for r in rows if r["preset"] == "base" and r["what"] == "decode" and r["precision"] == "fp32")
        cdc_rows = [
            {"what": "base, decode", "steps": arguments.steps, "s/megapixel": ours["s/megapixel"], "ratio": 1.0},
            cdc_row(arguments.cdc, arguments.device, ours["s/megapixel"]),
        ]
        report("against a plain sampler of CDC's size, fp32", cdc_rows, arguments.json)


@torch.inference_mode()
def codec_rows(name: str, precision: Precision, arguments: argparse.Namespace) -> list[Row]:
    steps, rounds = arguments.steps, arguments.rounds
    device, width, height = arguments.device, arguments.width, arguments.height
    torch.manual_seed(0)
    model = CorrDiffModel(preset(name))
    codec = CorrDiffCodec(model, model.entropy.freeze(), bytes(8), device, precision)
    image = sample(width, height)
    megapixels = width * height / 1e6
    data = codec.compress(image, steps=steps)

    padded_h, padded_w = -(-height // 64) * 64, -(-width // 64) * 64
    x = torch.rand(1, 3, padded_h, padded_w, device=device)
    x_last = x.contiguous(memory_format=torch.channels_last)
    y = torch.randn(1, codec.config.transform.latent_channels, padded_h // 16, padded_w // 16, device=device)
    g = codec.networks.gain([4])
    t = torch.full((1,), 0.5, device=device)
    with codec.networks.autocast():
        d = model.decoder(y, g).float().contiguous()
        context = model.context(y, d)
    grid, planes = Grid(height, width, codec.config.diffusion.grid), codec.config.diffusion.planes
    factors = torch.full((1, planes, grid.rows, grid.columns), 0.5, device=device)

    def networks(encoding: bool) -> None:
        with codec.networks.autocast():
            if encoding:
                latent = model.analysis(x_last)
            maps = model.context(y, model.decoder(y, g))
            for _ in range(steps):
                model.denoiser(x, maps, t)
        if encoding:
            model.entropy.hyper_analysis(latent.float())

    def forward() -> None:
        with codec.networks.autocast():
            model.denoiser(x, context, t)

    def step() -> None:
        with codec.networks.autocast():
            xhat0 = model.denoiser(x, context, t)
        parts = correction.split(xhat0.float().contiguous().clamp_(-1, 1), d, planes)
        diffusion.ddim_step(x, correction.apply(parts, factors, grid), 0.5, 0.4)

    actions: dict[str, Callable[[], object]] = {
        "score network, forward": forward,
        "a step": step,
        "networks of decode": lambda: networks(False),
        "decode": lambda: codec.decompress(data),
        "networks of encode": lambda: networks(True),
        "encode": lambda: codec.compress_batch([image], Settings(steps=steps)),
    }
    times = interleaved({what: _finished(action, device) for what, action in actions.items()}, rounds)
    peers = {"a step": "score network, forward", "decode": "networks of decode", "encode": "networks of encode"}
    return [
        {
            "preset": name,
            "precision": precision,
            "what": what,
            "s/megapixel": statistics.median(seconds) / megapixels,
            "over its networks": ratio(seconds, times[peers[what]]) if what in peers else None,
        }
        for what, seconds in times.items()
    ]


def _finished(action: Callable[[], object], device: str) -> Callable[[], object]:
    def run() -> None:
        action()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return run


@torch.inference_mode()
def cdc_row(side: int, device: str, ours: float) -> Row:
    """One whole trajectory of the stand-in; s a megapixel over all its steps."""
    torch.manual_seed(0)
    unet = CdcUnet().to(device).eval()
    context = [torch.randn(1, c, side >> i, side >> i, device=device) for i, c in enumerate(CdcUnet.CONTEXT)]
    x = torch.randn(1, 3, side, side, device=device)
    with FlopCounterMode(display=False) as counter:
        unet(x, context, torch.zeros(1, device=device))
    started = time.perf_counter()
    for t, t_next in itertools.pairwise(diffusion.sampling_times(CDC_STEPS, T_MAX)):
        x_0 = unet(x, context, torch.full((1,), t, device=device)).clamp(-1, 1)
        x = diffusion.ddim_step(x, x_0, t, t_next) if t_next > 0 else x_0
    float(x.sum())  # a GPU has to have finished
    seconds = time.perf_counter() - started
    per_megapixel = seconds / (side * side / 1e6)
    return {
        "what": f"CDC's size, {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M, "
        f"{counter.get_total_flops() / 2e9:.0f} GMAC a step for {side}x{side}",
        "steps": CDC_STEPS,
        "s/megapixel": per_megapixel,
        "ratio": per_megapixel / ours,
    }


class CdcUnet(nn.Module):
    """A U-Net at pixel resolution: 64 times (1..6) channels, two residual blocks and linear attention a level."""

    CHANNELS = (64, 128, 192, 256, 320, 384)
    CONTEXT = (3, 64, 128, 192)

    def __init__(self) -> None:
        super().__init__()
        c = self.CHANNELS
        self.time = nn.Sequential(nn.Linear(1, 4 * c[0]), nn.GELU(), nn.Linear(4 * c[0], c[0]))
        ins = (3, *c[:-1])
        context = (*self.CONTEXT, 0, 0)
        self.down = nn.ModuleList(
            nn.ModuleList([_Block(i + k, o, 7 if n == 0 else 3), _Block(o, o), _Attention(o)])
            for n, (i, o, k) in enumerate(zip(ins, c, context, strict=True))
        )
        self.shrink = nn.ModuleList(nn.Conv2d(o, o, 3, 2, 1) for o in c[:-1])
        self.middle = nn.ModuleList([_Block(c[-1], c[-1]), _Attention(c[-1]), _Block(c[-1], c[-1])])
        pairs = [(c[i], c[i - 1]) for i in range(len(c) - 1, 0, -1)]
        self.up = nn.ModuleList(nn.ModuleList([_Block(2 * i, o), _Block(o, o), _Attention(o)]) for i, o in pairs)
        self.grow = nn.ModuleList(nn.ConvTranspose2d(o, o, 4, 2, 1) for _, o in pairs)
        self.out = nn.Conv2d(c[0], 3, 7, padding=3)

    def forward(self, x: Tensor, context: list[Tensor], t: Tensor) -> Tensor:
        emb = self.time(t[:, None])
        skips = []
        for i, (one, two, attention) in enumerate(self.down):  # type: ignore[misc]
            if i < len(context):
                x = torch.cat([x, context[i]], 1)
            x = attention(two(one(x, emb), emb))
            skips.append(x)
            if i < len(self.shrink):
                x = self.shrink[i](x)
        one, attention, two = self.middle
        x = two(attention(one(x, emb)), emb)
        for (one, two, attention), grow in zip(self.up, self.grow, strict=True):  # type: ignore[misc]
            x = grow(attention(two(one(torch.cat([x, skips.pop()], 1), emb), emb)))
        out: Tensor = self.out(x)
        return out


class _Norm(nn.Module):
    """Over the channels of a position, with scale and shift."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1, c, 1, 1)), nn.Parameter(torch.zeros(1, c, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = x.var(1, unbiased=False, keepdim=True), x.mean(1, keepdim=True)
        return (x - mean) / (variance + 1e-5).sqrt() * self.scale + self.shift


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, side: int = 3) -> None:
        super().__init__()
        self.emb = nn.Linear(64, c_out)
        self.one = nn.Sequential(nn.Conv2d(c_in, c_out, side, padding=side // 2), _Norm(c_out), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(c_out, c_out, 3, padding=1), _Norm(c_out), nn.ReLU())
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        out: Tensor = self.two(self.one(x) + self.emb(emb)[:, :, None, None]) + self.skip(x)
        return out


class _Attention(nn.Module):
    """Linear attention, one head of as many channels as there are."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = _Norm(c)
        self.qkv = nn.Conv2d(c, 3 * c, 1, bias=False)
        self.out = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        mixed = (k.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2) @ q
        out: Tensor = x + self.out(mixed.reshape(x.shape))
        return out


if __name__ == "__main__":
    main()
