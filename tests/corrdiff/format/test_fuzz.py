"""Mutated files through the container reader and the image opener: an answer or the error that callers expect.

No crash, no second of work, no memory beyond what the limit on pixels allows. A file's checksums are put right after
half of the mutations, since else they would stop all of them at the door.
"""

from __future__ import annotations

import io
import resource
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from corrdiff import coding
from corrdiff.codec import CorrDiffCodec, Settings
from corrdiff.config import CodecConfig, DenoiserConfig, DiffusionConfig, TransformConfig
from corrdiff.format import bitstream
from corrdiff.format.bitstream import BitstreamError
from corrdiff.images import ImageError, open_image
from corrdiff.networks.model import CorrDiffModel

MAX_PIXELS = 1 << 16
MEMORY_BYTES = 256 << 20
CPU_SECONDS = 1.0

Draw = Callable[..., Any]
Mutation = tuple[str, float, bytes]

mutations = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "repeat", "flip", "cut", "extreme"]),
        st.floats(0, 1, exclude_max=True, width=32),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=5,
)
seeds = st.integers(0, 1 << 16)


def mutated(data: bytes, changes: list[Mutation]) -> bytes:
    out = bytearray(data)
    for kind, where, value in changes:
        at = int(where * max(1, len(out)))
        if kind == "replace":
            out[at : at + len(value)] = value
        elif kind == "insert":
            out[at:at] = value
        elif kind == "delete":
            del out[at : at + value[0]]
        elif kind == "repeat":
            out[at:at] = out[at : at + value[0]] * (value[-1] % 16)
        elif kind == "flip" and out:
            out[min(at, len(out) - 1)] ^= 1 << (value[0] % 8)
        elif kind == "extreme":
            extreme = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0")
            out[at : at + 4] = extreme[value[0] % len(extreme)]
        elif kind == "cut":
            del out[at:]
    return bytes(out)


def cheap(action: Callable[[], None]) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):  # what a hang costs, it costs again; the garbage collector's rounds it does not
        started = time.thread_time()
        action()
        seconds = time.thread_time() - started
        if seconds < CPU_SECONDS:
            break
    assert seconds < CPU_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MEMORY_BYTES


def runs(examples: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )


def small_codec(diffusion: DiffusionConfig, **slices: Any) -> CorrDiffCodec:
    """As few channels as may be: the coding is what is tried."""
    import torch

    torch.manual_seed(0)
    transform = TransformConfig(channels=(8, 8, 8), blocks=1, latent_channels=6, hyper_channels=4, **slices)
    denoiser = DenoiserConfig(channels=(8, 8, 8), context_channels=(4, 4, 4), time_channels=8)
    model = CorrDiffModel(CodecConfig("fuzzed", transform, denoiser, diffusion))
    with torch.no_grad():
        model.entropy.hyper_analysis.layers[-1].weight.mul_(20.0)
    return CorrDiffCodec(model, model.entropy.freeze(), b"fuzzed!!")


class Written(NamedTuple):
    """A file and the codec that wrote it."""

    data: bytes
    codec: CorrDiffCodec


@pytest.fixture(scope="module")
def files(draw: Draw) -> list[Written]:
    """Of both versions, with context and without, with two planes of factors, with one and with none."""
    ours = DiffusionConfig()
    first, sliced = small_codec(ours), small_codec(ours, slices=(2, 4), context_channels=4)
    paper = small_codec(ours.corrected_by("paper"))
    chosen = [
        (first, 1, 1, 1, 0), (first, 70, 40, 3, 0), (first, 140, 150, 2, 0), (first, 60, 300, 1, 256),
        (sliced, 70, 40, 3, 0), (sliced, 60, 300, 1, 256), (sliced, 70, 130, 0, 0), (paper, 70, 40, 3, 0),
    ]  # fmt: skip
    return [
        Written(codec.compress_batch([draw(height, width)], Settings(7, 0.5, steps, tile))[0].data, codec)
        for codec, height, width, steps, tile in chosen
    ]


def read_everything(data: bytes, codec: CorrDiffCodec) -> None:
    """All that decoding reads of a file, without the networks."""
    try:
        parsed = bitstream.unpack(data, codec.fingerprint, MAX_PIXELS)
        header = parsed.header
        for tile in coding.layout_of(header):
            y_hat_BMhw = coding.read_latents([parsed], tile, codec.tables)
            assert bool(y_hat_BMhw.isfinite().all())
            levels = coding.read_factors(parsed, tile)
            assert levels.shape == (header.steps, header.planes, tile.grid.rows, tile.grid.columns)
        assert coding.made_up(parsed).shape == (header.height, header.width)
    except BitstreamError:
        pass


def _container(examples: int) -> Callable[..., None]:
    @runs(examples)
    @given(seed=seeds, changes=mutations, sealed=st.booleans())
    def run(files: list[Written], seed: int, changes: list[Mutation], sealed: bool) -> None:
        original, codec = files[seed % len(files)]
        if sealed:  # what comes behind the fingerprint is changed, and the checksum fits
            body = original[:14] + mutated(original[14:-4], changes)
            data = body + struct.pack("<I", zlib.crc32(body))
        else:
            data = mutated(original, changes)
        cheap(lambda: read_everything(data, codec))

    return run


def _image(examples: int) -> Callable[..., None]:
    @runs(examples)
    @given(seed=seeds, changes=mutations, sealed=st.booleans())
    def run(seed: int, changes: list[Mutation], sealed: bool) -> None:
        data = mutated(PICTURES[seed % len(PICTURES)], changes)
        if sealed and data.startswith(b"\x89PNG"):
            data = _with_right_checksums(data)
        cheap(lambda: open_or_refuse(data))

    return run


def open_or_refuse(data: bytes) -> None:
    try:
        opened = open_image(data, MAX_PIXELS)
    except ImageError as error:
        assert "\n" not in str(error)
        return
    assert opened.pixels.dtype == np.uint8
    assert opened.pixels.ndim == 3
    assert opened.pixels.shape[2] == 3
    assert 0 < opened.pixels.size <= 3 * MAX_PIXELS


def _with_right_checksums(png: bytes) -> bytes:
    out, position = bytearray(png), 8
    while position + 12 <= len(out):
        length = struct.unpack_from(">I", out, position)[0]
        end = position + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[position + 4 : end]))
        position = end + 4
    return bytes(out)


def _pictures() -> list[bytes]:
    """Each format in several of its forms."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (17, 24, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    frames = [rgb, rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    deep = Image.fromarray(rng.integers(0, 65536, (9, 11)).astype(np.uint16))
    forms: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *[(rgb, kind, {}) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")],
        (rgb, "JPEG", {"progressive": True, "exif": exif}),
        (rgb, "JPEG", {"icc_profile": profile, "subsampling": 0}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("L"), "JPEG", {"restart_marker_blocks": 1}),
        (rgb.convert("RGBA"), "PNG", {"icc_profile": profile}),
        (rgb.convert("P"), "PNG", {"transparency": 3, "exif": exif}),
        (rgb.convert("1"), "PNG", {}),
        (deep, "PNG", {}),
        (frames[0], "PNG", {"save_all": True, "append_crops": frames[1:]}),
        (rgb, "WEBP", {"lossless": True, "exif": exif}),
        (rgb.convert("RGBA"), "WEBP", {"icc_profile": profile}),
        (frames[0], "WEBP", {"save_all": True, "append_crops": frames[1:]}),
        *[(rgb, "TIFF", {"compression": c}) for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")],
        (rgb.convert("1"), "TIFF", {"compression": "group4"}),
        (deep, "TIFF", {}),
        (rgb.convert("F"), "TIFF", {}),
        (frames[0], "TIFF", {"save_all": True, "append_crops": frames[1:], "exif": exif}),
        (frames[0], "GIF", {"save_all": True, "append_crops": frames[1:]}),
        (rgb.convert("P"), "BMP", {}),
        (rgb.convert("RGBA"), "BMP", {}),
    ]
    out = []
    for image, kind, options in forms:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        out.append(buffer.getvalue())
    return out


PICTURES = _pictures()

test_a_mutated_container_is_read_or_refused = _container(2000)
test_a_mutated_picture_is_opened_or_refused = _image(2000)
test_many_mutated_containers_are_read_or_refused = pytest.mark.slow(pytest.mark.timeout(3600)(_container(120_000)))
test_many_mutated_pictures_are_opened_or_refused = pytest.mark.slow(pytest.mark.timeout(3600)(_image(120_000)))
