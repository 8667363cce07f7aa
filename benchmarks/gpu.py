"""What a GPU makes of the codec and of its training: all that is to be measured in the first half hour on a new card.

    python -m benchmarks.gpu facts exact codec train --budget 150

The parts run in the order in which they are named, each some minutes at most, the most important first. None needs Ray;
what a part needs that is not installed is said in its table, and so is what fails. What is expected, for an H100 unless
said otherwise, stands beside what is found.

facts   what the card does by itself: products, copies, launches, convolutions in both layouts, pixel shuffles
exact   the integer networks find on it what they find on a CPU; files written on one are read on the other
codec   encode and decode: ms a megapixel by batch and size, kernels, how busy the card is, memory
train   steps of phase 1: crops a second with and without recomputation, by layout, cudnn.benchmark, compiled
engine  a whole step of the trainer, with drawing, copies, DeepSpeed and the weight average
lpips   LPIPS trains and validates in one process
oom     a batch too large for the memory becomes smaller ones
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import Row, parser, report
from corrdiff import coding
from corrdiff.codec import CorrDiffCodec, Pending, Preview, Settings
from corrdiff.codec_directory import default_precision, load_codec
from corrdiff.config import BUILTIN, HYPER_STRIDE, LATENT_STRIDE, PRESETS, QUALITIES, preset
from corrdiff.format import bitstream
from corrdiff.format.entropy_tables import EntropyTables
from corrdiff.format.latent_models import QUALITY_PARTS
from corrdiff.format.noise import format_noise
from corrdiff.networks import layers
from corrdiff.networks.model import CorrDiffModel
from corrdiff.picture import Picture

GB, GIB = 1e9, 1 << 30
CHANNELS_LAST = torch.channels_last


class Case(NamedTuple):
    """One row of a part's table: what is known before it is measured, and how the rest is found."""

    row: Row
    measure: Callable[[], Row]


@dataclass(frozen=True)
class Bench:
    """Where all is measured, and how large."""

    device: torch.device
    preset: str
    quick: bool
    """Small enough for a CPU: it shows that a part runs, not how fast."""

    @property
    def on_gpu(self) -> bool:
        """Whether there is something to wait for."""
        return self.device.type == "cuda"

    def finish(self) -> None:
        """Wait for what has been launched."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, action: Callable[[], object]) -> float:
        """Median time of a call. Calls are so many at a time that the wait for the last of them hardly counts."""

        def elapsed(calls: int) -> float:
            self.finish()
            started = time.perf_counter()
            for _ in range(calls):
                action()
            self.finish()
            return (time.perf_counter() - started) / calls

        elapsed(1)  # libraries load, algorithms are chosen
        once = elapsed(1)
        if self.quick:
            return once
        calls = max(1, min(1000, int(0.02 / once)))
        return statistics.median(elapsed(calls) for _ in range(3 if once > 0.3 else 7))

    def kernels(self, action: Callable[[], object]) -> tuple[int, float]:
        """Count the kernels and copies of a call, and the seconds for which they keep the GPU busy."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            action()
            self.finish()
        ran = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        return len(ran), sum(e.time_range.elapsed_us() for e in ran) / 1e6

    def peak_gib(self, action: Callable[[], object]) -> float:
        """Measure the most memory that tensors take on the GPU during a call."""
        torch.cuda.reset_peak_memory_stats(self.device)
        action()
        return torch.cuda.max_memory_allocated(self.device) / GIB


def main() -> None:
    made = parser(__doc__)
    made.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all where none is named")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--preset", choices=list(PRESETS), default="base", help="the networks of codec, train and engine")
    made.add_argument("--quick", action="store_true", help="small sizes: whether everything runs, on a CPU too")
    made.add_argument("--budget", type=float, default=1800, help="seconds for all parts; what is left is dealt evenly")
    arguments = made.parse_args()
    parts = arguments.parts or list(PARTS)
    if unknown := [name for name in parts if name not in PARTS]:
        made.error(f"no part is called {unknown[0]}; there are {', '.join(PARTS)}")
    device = torch.device(arguments.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    bench = Bench(device, arguments.preset, arguments.quick)
    end = time.monotonic() + arguments.budget
    for i, name in enumerate(parts):
        started = time.monotonic()
        rows = run(PARTS[name](bench), started + (end - started) / (len(parts) - i), bench)
        took = time.monotonic() - started
        report(f"{name}, {machine(bench)}, {took:.0f} s", rows, arguments.json)


def run(cases: Iterator[Case], until: float, bench: Bench) -> list[Row]:
    """Measure cases until the time is up; one that fails says why and stops none of the others."""
    rows: list[Row] = []
    while time.monotonic() < until:
        row: Row = {}
        found: Row
        try:
            case = next(cases, None)
            if case is None:
                return rows
            row = case.row
            found = case.measure()
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"}
        rows.append({**row, **found})
        print(".", end="", flush=True)
        gc.collect()
        if bench.on_gpu:
            torch.cuda.empty_cache()
    left = len(list(cases))
    return [*rows, {"failed": f"no time was left for {left} more"}] if left else rows


def machine(bench: Bench) -> str:
    """Name what it ran on."""
    cores = f"{os.cpu_count()} cores, torch {torch.__version__}"
    if not bench.on_gpu:
        return f"CPU, {cores}"
    return f"{torch.cuda.get_device_name(bench.device)}, {cores}, cuDNN {torch.backends.cudnn.version()}"


def facts(bench: Bench) -> Iterator[Case]:
    """What the card does by itself."""
    device, small = bench.device, bench.quick

    def product(shape: tuple[int, int, int], dtype: torch.dtype) -> Row:
        n, k, m = shape
        a, b = torch.randn(n, k, device=device).to(dtype), torch.randn(k, m, device=device).to(dtype)
        return {"found": 2 * n * k * m / bench.seconds(lambda: a @ b) / 1e12}

    def copy(megabytes: int) -> Row:
        a = torch.randint(0, 256, (megabytes << 20,), dtype=torch.uint8, device=device)
        b = torch.empty_like(a)
        return {"found": 2 * a.numel() / bench.seconds(lambda: b.copy_(a)) / GB}

    def to_device(megabytes: int, pinned: bool) -> Row:
        a = torch.zeros(megabytes << 20, dtype=torch.uint8, pin_memory=pinned)
        return {"found": a.numel() / bench.seconds(lambda: a.to(device, non_blocking=pinned)) / GB}

    def launch() -> Row:
        a = torch.zeros(8, device=device)
        return {"found": bench.seconds(lambda: a.add_(1)) * 1e6}

    def keeps(shuffle: Callable[[Tensor, int], Tensor]) -> Row:
        a = torch.zeros(2, 16, 8, 8, device=device).contiguous(memory_format=CHANNELS_LAST)
        return {"found": str(shuffle(a, 2).is_contiguous(memory_format=CHANNELS_LAST))}

    def shuffle_ms(ours: bool) -> Row:
        shape = (2, 64, 8, 8) if small else (64, 768, 32, 32)
        a = torch.randn(shape, device=device).bfloat16().contiguous(memory_format=CHANNELS_LAST)
        if ours:
            return {"found": bench.seconds(lambda: layers.pixel_shuffle(a, 2)) * 1e3}
        theirs = bench.seconds(lambda: F.pixel_shuffle(a, 2).contiguous(memory_format=CHANNELS_LAST))
        return {"found": theirs * 1e3}

    def convolution(layout: torch.memory_format, benchmark: bool) -> Row:
        batch, channels, side = (2, 32, 16) if small else (64, 192, 64)
        conv = nn.Conv2d(channels, channels, 3, padding=1).to(device)
        shape = batch, channels, side, side
        a = torch.randn(shape, device=device).contiguous(memory_format=layout).requires_grad_()

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                conv(a).sum().backward()

        with cudnn_benchmark(benchmark):
            return {"found": 3 * 2 * batch * side**2 * channels**2 * 9 / bench.seconds(step) / 1e12}

    large, as_h_s = (8192, 8192, 8192), (1280, 1440, 6144)  # H_s of `base`, 16 pictures of 768x512
    if small:
        large, as_h_s = (256, 256, 256), (64, 90, 64)
    product_bf16 = {"what": "product, bf16", "unit": "TFLOP/s", "expected": "798"}
    yield Case(product_bf16, partial(product, large, torch.bfloat16))
    product_float64 = {"what": "product, float64, as H_s", "unit": "TFLOP/s", "expected": "50; L40S 1.3, L4 0.4"}
    yield Case(product_float64, partial(product, as_h_s, torch.float64))
    yield Case({"what": "copy on the device", "unit": "GB/s", "expected": "3,000"}, partial(copy, 8 if small else 1024))
    yield Case({"what": "launch of a kernel", "unit": "µs"}, launch)
    yield Case({"what": "to the device, pageable", "unit": "GB/s"}, partial(to_device, 1 if small else 64, False))
    if bench.on_gpu:
        yield Case({"what": "to the device, pinned", "unit": "GB/s"}, partial(to_device, 64, True))
    lost = "False" if bench.on_gpu else "True"
    for name, shuffle, expected in (
        ("torch's pixel_shuffle", F.pixel_shuffle, lost), ("torch's pixel_unshuffle", F.pixel_unshuffle, lost),
        ("our pixel_shuffle", layers.pixel_shuffle, "True"), ("our pixel_unshuffle", layers.pixel_unshuffle, "True"),
    ):  # fmt: skip
        yield Case({"what": f"{name} keeps channels_last", "expected": expected}, partial(keeps, shuffle))
    for name, ours in (("torch's, and back to channels_last", False), ("ours", True)):
        yield Case({"what": f"pixel shuffle, {name}", "unit": "ms"}, partial(shuffle_ms, ours))
    for name, layout in (("NCHW", torch.contiguous_format), ("channels_last", CHANNELS_LAST)):
        for benchmark in (False, True):
            row = {"what": f"convolution and its gradients, {name}, cudnn.benchmark {benchmark}", "unit": "TFLOP/s"}
            yield Case(row, partial(convolution, layout, benchmark))


@contextlib.contextmanager
def cudnn_benchmark(on: bool) -> Iterator[None]:
    """Have cuDNN try its algorithms for each new shape, for the length of a block."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def exact(bench: Bench) -> Iterator[Case]:
    """Whole numbers are the same, and files are read, wherever they are from."""
    emulated = os.environ.get("CUBLAS_EMULATE_DOUBLE_PRECISION", "not set")
    sizes = [(b, side) for side in (1, 2, 5, 16) for b in (1, 3)] + [(8, 16), (3, 32), (1, 64)]
    if bench.quick:
        sizes = [(1, 1), (3, 2)]
    models: dict[str, Callable[[], tuple[EntropyTables, EntropyTables]]] = {
        BUILTIN: lambda: (load_codec(BUILTIN).tables, load_codec(BUILTIN, bench.device).tables),
        bench.preset: partial(_tables_twice, bench),
    }
    for name, both in models.items():
        row = {
            "what": f"integer networks of {name}",
            "CUBLAS_EMULATE_DOUBLE_PRECISION": emulated,
            "expected": "0 differ",
        }
        yield Case(row, partial(_draws, both, sizes, bench))
    devices = dict.fromkeys((torch.device("cpu"), bench.device))
    for writer in devices:
        for reader in devices:
            yield Case({"what": f"written on {writer}, read on {reader}"}, partial(_crossed, writer, reader))


def _tables_twice(bench: Bench) -> tuple[EntropyTables, EntropyTables]:
    torch.manual_seed(0)
    tables = CorrDiffModel(preset(bench.preset)).entropy.freeze()
    other = EntropyTables(tables.tensors)
    other.run_on(bench.device)
    return tables, other


def _draws(both: Callable[[], tuple[EntropyTables, EntropyTables]], sizes: list[tuple[int, int]], bench: Bench) -> Row:
    """Quantise the same latents on both devices, small ones and such as leave the tables."""
    here, there = both()
    generator = torch.Generator().manual_seed(1)
    differ = draws = 0
    for batch, side in sizes:
        for spread in (1.0, 30.0, 1e4):
            z = spread * torch.randn(batch, here.hyper_channels, side, side + 1, generator=generator)
            y = spread * torch.randn(batch, here.latent_channels, 4 * side, 4 * side + 4, generator=generator)
            quality_B = torch.randint(QUALITIES * QUALITY_PARTS - QUALITY_PARTS, (batch,), generator=generator)
            expected = here.quantise(y, z, quality_B)[0]
            with torch.autocast(bench.device.type, torch.bfloat16):
                found = there.quantise(y.to(bench.device), z.to(bench.device), quality_B)[0]
            draws += batch
            differ += sum(not one.same_as(other) for one, other in zip(expected, found, strict=True))
    return {"found": f"{differ} of {draws} differ", "on": str(there.device)}


def _crossed(writer: torch.device, reader: torch.device) -> Row:
    """What a reader shows of a file, against what the writer said it would show; in grey levels."""
    image = picture(416, 288, 0)
    written = load_codec(BUILTIN, writer).compress_batch([image, image], Settings(fidelity=0.5))[1]
    shown = load_codec(BUILTIN, reader).decompress(written.data)
    difference = np.abs(shown.astype(int) - written.reconstruction)
    return {"bytes": len(written.data), "mean difference": float(difference.mean()), "most": int(difference.max())}


def picture(width: int, height: int, seed: int) -> Picture:
    """Draw something with edges and texture."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3)).repeat(16, 0).repeat(16, 1)[:height, :width]
    return np.clip(blocks + rng.normal(0, 8, blocks.shape), 0, 255).astype(np.uint8)


def codec(bench: Bench) -> Iterator[Case]:
    """Encode and decode by batch and size."""
    shapes = [(16, 768, 512), (1, 768, 512), (4, 768, 512), (32, 256, 256), (1, 2048, 2048), (1, 3072, 2048)]
    if bench.quick:
        shapes = [(2, 64, 64)]
    for name in (bench.preset, BUILTIN):
        for batch, width, height in shapes:
            row = {"codec": name, "batch": batch, "picture": f"{width}x{height}"}
            trip = RoundTrip(bench, name, batch, width, height)
            expected = "45 to 60" if (name, batch, width) == ("base", 16, 768) else ""
            yield Case({**row, "what": "encode", "expected ms/MP": expected}, partial(trip.measure, trip.encode))
            yield Case({**row, "what": "decode"}, partial(trip.measure, trip.decode))
            yield Case({**row, "what": "D alone"}, partial(trip.measure, trip.privileged))
            yield Case({**row, "what": "latents from bytes"}, partial(trip.measure, trip.read))
            yield Case({**row, "what": "preview"}, partial(trip.measure, trip.preview))
            yield Case({**row, "what": "noise"}, partial(trip.measure, trip.noise))


class RoundTrip:
    """A batch of pictures through one codec, which come to be when they are first needed."""

    def __init__(self, bench: Bench, name: str, batch: int, width: int, height: int) -> None:
        self._bench, self._name = bench, name
        self._batch, self._width, self._height = batch, width, height
        self._settings = Settings(steps=1 if bench.quick else None)

    def measure(self, action: Callable[[], object]) -> Row:
        """Measure one thing that is done with the batch."""
        seconds = self._bench.seconds(action)
        row: Row = {"ms/MP": seconds * 1e3 / (self._batch * self._width * self._height / 1e6)}
        return row | use_of_device(self._bench, action, seconds)

    @cached_property
    def _codec(self) -> CorrDiffCodec:
        return _codec(self._name, self._bench.device)

    @cached_property
    def _images(self) -> list[Picture]:
        return [picture(self._width, self._height, i) for i in range(self._batch)]

    @cached_property
    def _files(self) -> list[bytes]:
        return [coding.write(pending, self._codec.tables) for pending in self.encode()]

    @cached_property
    def _latents(self) -> list[Tensor]:
        return self._codec.latents(self._images, self._settings)

    def encode(self) -> list[Pending]:
        return self._codec.encode_batch(self._images, self._settings)

    def decode(self) -> list[Picture]:
        return self._codec.decompress_batch(self._files)

    def privileged(self) -> list[Picture]:
        return self._codec.decompress_batch(self._files, "privileged")

    def read(self) -> list[Tensor]:
        parsed = coding.unpack_batch(self._files, self._codec.fingerprint, bitstream.MAX_PIXELS)
        layout = coding.layout_of(parsed[0].header)
        return [coding.read_latents(parsed, tile, self._codec.tables) for tile in layout]

    def preview(self) -> list[Preview]:
        return self._codec.preview(self._images, self._latents, self._settings, [4] * self._batch)

    def noise(self) -> Tensor:
        return format_noise(self._height, self._width).to(self._bench.device)


@cache
def _codec(name: str, device: torch.device) -> CorrDiffCodec:
    if name == BUILTIN:
        return load_codec(BUILTIN, device)
    torch.manual_seed(0)
    model = CorrDiffModel(preset(name))
    return CorrDiffCodec(model, model.entropy.freeze(), bytes(8), device, default_precision(device))


def use_of_device(bench: Bench, action: Callable[[], object], seconds: float) -> Row:
    """Kernels of a call that takes so long, the share of it for which they keep the device busy, and its memory."""
    if not bench.on_gpu:
        return {}
    kernels, busy = bench.kernels(action)
    return {"kernels": kernels, "busy": f"{busy / seconds:.0%}", "peak GiB": bench.peak_gib(action)}


class Variant(NamedTuple):
    """How a step of phase 1 is taken."""

    batch: int
    recomputed: bool
    shuffle: str
    weights: str
    benchmark: bool
    compiled: bool = False
    expected: str = ""


def train(bench: Bench) -> Iterator[Case]:
    """Steps of phase 1 on samples that lie on the device."""
    variants = [
        Variant(64, True, "torch's", "NCHW", False, expected="430 to 580"),
        Variant(64, False, "ours", "NCHW", True, expected="700 to 980"),
        Variant(64, False, "ours", "channels_last", True, expected="700 to 980"),
        Variant(64, True, "ours", "NCHW", True),
        Variant(64, False, "torch's", "NCHW", False),
        Variant(64, False, "ours", "NCHW", False),
        Variant(64, False, "torch's", "NCHW", True),
        Variant(8, False, "ours", "NCHW", True),
        Variant(64, False, "ours", "NCHW", True, compiled=True),
        Variant(8, False, "ours", "NCHW", True, compiled=True),
    ]
    crop = 256
    if bench.quick:
        variants, crop = [Variant(2, True, "torch's", "channels_last", True)], 64
    for variant in variants:
        row = {"preset": bench.preset, "crop": crop, **variant._asdict()}
        yield Case(row, partial(_training, bench, variant, crop))


def _training(bench: Bench, variant: Variant, crop: int) -> Row:
    from pipelines.train.deepspeed_config import ADAM_BETAS, ADAM_EPS
    from pipelines.train.phases.phase1 import Phase1Module

    device = bench.device
    torch.manual_seed(0)
    model = CorrDiffModel(preset(bench.preset))
    module = Phase1Module(model, 0.03).to(device)
    if variant.recomputed:
        layers.recompute_blocks(model)
    if variant.weights == "channels_last":
        module = module.to(memory_format=CHANNELS_LAST)
    if variant.compiled:
        for block in model.modules():
            if isinstance(block, layers.ResidualBlock | layers.TimeResidualBlock):
                block.compile()
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=ADAM_BETAS, eps=ADAM_EPS, weight_decay=0.0)
    sample = _sample(bench, variant.batch, crop)

    def losses() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            loss: Tensor = module(sample, "together", 1.0)[:, 0].mean()
        return loss

    def step() -> None:
        losses().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def shuffled() -> contextlib.AbstractContextManager[object]:
        if variant.shuffle == "ours":
            return contextlib.nullcontext()
        return mock.patch.object(layers, "_loses_layout", lambda x_BCHW: False)

    with shuffled(), cudnn_benchmark(variant.benchmark):
        seconds = bench.seconds(step)
        row: Row = {"ms": seconds * 1e3, "crops/s": variant.batch / seconds}
        row |= use_of_device(bench, step, seconds)
        if not variant.recomputed and not variant.compiled:
            with FlopCounterMode(display=False) as counter:
                losses().backward()
            row["TFLOP/s"] = counter.get_total_flops() / seconds / 1e12
    return row


def _sample(bench: Bench, batch: int, crop: int) -> Any:
    """A batch as `pipelines.train.samples` would draw it."""
    from pipelines.train.samples import Sample

    device, transform = bench.device, preset(bench.preset).transform
    h, u = crop // LATENT_STRIDE, crop // HYPER_STRIDE
    x = (2 * torch.rand(batch, 3, crop, crop, device=device) - 1).contiguous(memory_format=CHANNELS_LAST)
    return Sample(
        x, torch.ones(batch, device=device), torch.randint(QUALITIES, (batch,), device=device),
        torch.rand(batch, device=device), torch.randn(batch, 3, crop, crop, device=device),
        torch.rand(batch, transform.latent_channels, h, h, device=device) - 0.5,
        torch.rand(batch, transform.hyper_channels, u, u, device=device) - 0.5,
    )  # fmt: skip


def engine(bench: Bench) -> Iterator[Case]:
    """Steps of the trainer as a worker takes them, one process."""
    for stage, threads in [(0, 1)] if bench.quick else [(0, 1), (0, 8), (1, 1), (3, 1)]:
        row = {"preset": bench.preset, "ZeRO stage": stage, "threads": threads}
        yield Case(row, partial(_engine, bench, stage, threads))


def _engine(bench: Bench, stage: int, threads: int) -> Row:
    import torch.distributed as dist

    if not bench.on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401 -- where it is missing, nothing is begun

    from pipelines.train.batch import Batch
    from pipelines.train.config import TrainConfig
    from pipelines.train.epoch_order import Cursor
    from pipelines.train.phases.table import PHASES
    from pipelines.train.trainer import Trainer

    batch, crop = (4, 64) if bench.quick else (64, 256)
    if not dist.is_initialized():
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")  # DeepSpeed reads them
        dist.init_process_group("nccl" if bench.on_gpu else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    config = TrainConfig(
        shards="", batch=batch, crop=crop, preset=bench.preset, precision="bf16", zero_stage=stage,
        transforms_share=0.0, score_share=0.0,
    )  # type: ignore[arg-type] # fmt: skip
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch, crop + 64, crop + 64, 3), np.uint8)
    ones = np.ones(batch, np.float32)
    crops = Batch(0, [str(i) for i in range(batch)], pixels, ones, batch, Cursor(0, 1), 0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        trainer = Trainer(config, PHASES["phase1"], bench.device, None)
        drawn = trainer.draw(crops, 0)
        seconds = bench.seconds(lambda: trainer.step(drawn))
        draw = bench.seconds(lambda: trainer.draw(crops, 0))
        row: Row = {"ms": seconds * 1e3, "crops/s": batch / seconds, "drawing and copying ms": draw * 1e3}
        row |= use_of_device(bench, lambda: trainer.step(drawn), seconds)
        trainer.engine.destroy()
        return row
    finally:
        torch.set_num_threads(before)


def lpips(bench: Bench) -> Iterator[Case]:
    """LPIPS of random weights as training and validation use it, one after the other."""

    def trains_and_validates() -> Row:
        import torchvision

        from corrdiff import metrics, perceptual, pretrained

        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / pretrained.ALEXNET.file
            torch.save(torchvision.models.alexnet(weights=None).state_dict(), file)
            loss = perceptual.lpips_loss(file, bench.device)
            x = torch.rand(2, 3, 64, 64, device=bench.device)
            trained = float(loss(x, x.flip(0)).mean())
            a, b = picture(64, 64, 0), picture(64, 64, 1)
            return {"loss": trained, "validation": metrics.lpips_distance(a, b, perceptual.load_lpips(file))}

    yield Case({"what": "a loss on the device, then a metric of pictures"}, trains_and_validates)


def oom(bench: Bench) -> Iterator[Case]:
    """Pictures of which each fits and all together do not."""

    def encoded() -> Row:
        from pipelines.compress.chunk import Chunk, Opened
        from pipelines.compress.config import CompressConfig
        from pipelines.compress.encode import Encoder

        width, height, count = (64, 64, 4) if bench.quick else (768, 512, 16)
        encoder = Encoder(BUILTIN, CompressConfig(batch=count, steps=1), bench.device.type)
        opened = [Opened(i, str(i), "", picture(width, height, i)) for i in range(count)]
        encode = encoder.codec.encode_batch
        attempts: list[int] = []

        def counted(images: list[Picture], *rest: Any) -> Any:
            attempts.append(len(images))
            if not bench.on_gpu and len(images) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory, a GPU would say")
            return encode(images, *rest)

        one = bench.peak_gib(lambda: encode([opened[0].pixels], Settings(steps=1))) if bench.on_gpu else 0.0
        with mock.patch.object(encoder.codec, "encode_batch", counted), memory_limit(bench, 2.5 * one):
            pictures = encoder({"chunk": Chunk(0, opened, count, {})})["chunk"].pictures
        failed = sum(p.pending is None for p in pictures)
        return {"found": f"{failed} of {count} failed", "batches tried": " ".join(map(str, attempts))}

    yield Case({"what": "a batch of pictures, memory for two", "expected": "0 failed"}, encoded)


@contextlib.contextmanager
def memory_limit(bench: Bench, gib: float) -> Iterator[None]:
    """Let this process have so much of a GPU's memory, for the length of a block."""
    if not bench.on_gpu:
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    torch.cuda.set_per_process_memory_fraction(gib * GIB / total, bench.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)


PARTS: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "facts": facts, "exact": exact, "codec": codec, "train": train, "engine": engine, "lpips": lpips, "oom": oom,
}  # fmt: skip


if __name__ == "__main__":
    main()
