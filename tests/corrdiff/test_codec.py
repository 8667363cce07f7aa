from __future__ import annotations

import inspect
import math
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrdiff import load_codec
from corrdiff.codec import CorrDiffCodec, Encoded, Settings
from corrdiff.codec_directory import load_networks
from corrdiff.errors import UsageError
from corrdiff.format import bitstream
from corrdiff.format.bitstream import BitstreamError, Streams
from corrdiff.format.entropy_tables import LatentStreams
from corrdiff.format.factor_coding import decode_factors, encode_factors
from corrdiff.metrics import psnr
from corrdiff.picture import Picture

Draw = Callable[..., Picture]

SIZES = [(1, 1), (1, 7), (7, 1), (17, 33), (64, 64), (65, 63), (129, 40)]


def _encode(codec: CorrDiffCodec, picture: Picture, quality: int = 4, fidelity: float = 0.5, steps: int = 2) -> Encoded:
    return codec.compress_batch([picture], Settings(quality, fidelity, steps))[0]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_decoder_shows_what_the_encoder_saw(codec: CorrDiffCodec, draw: Draw, height: int, width: int) -> None:
    encoded = _encode(codec, draw(height, width))
    assert encoded.reconstruction.shape == (height, width, 3)
    assert np.array_equal(codec.decompress(encoded.data), encoded.reconstruction)


@pytest.mark.parametrize("quality", range(8))
def test_every_quality_is_decoded(codec: CorrDiffCodec, draw: Draw, quality: int) -> None:
    encoded = _encode(codec, draw(40, 72), quality)
    assert np.array_equal(codec.decompress(encoded.data), encoded.reconstruction)


@pytest.mark.parametrize("fidelity", [0.0, 0.25, 1.0])
def test_every_fidelity_is_decoded(codec: CorrDiffCodec, draw: Draw, fidelity: float) -> None:
    encoded = _encode(codec, draw(40, 72), fidelity=fidelity)
    assert np.array_equal(codec.decompress(encoded.data), encoded.reconstruction)


@pytest.mark.parametrize("steps", [1, 2, 3, 64])
def test_every_number_of_steps_is_decoded(codec: CorrDiffCodec, draw: Draw, steps: int) -> None:
    encoded = _encode(codec, draw(33, 20), steps=steps)
    assert [f.shape for f in encoded.factors] == [(steps, 2, 1, 1)]
    assert np.array_equal(codec.decompress(encoded.data), encoded.reconstruction)


def test_steps_that_are_not_given_are_the_codecs_own(codec: CorrDiffCodec, draw: Draw) -> None:
    data = codec.compress(draw(8, 8))
    assert bitstream.unpack(data).header.steps == codec.config.diffusion.steps


def test_the_file_says_how_it_was_made(codec: CorrDiffCodec, draw: Draw) -> None:
    header = bitstream.unpack(codec.compress(draw(17, 33), quality=6, steps=3)).header
    diffusion = codec.config.diffusion
    assert header == bitstream.Header(codec.fingerprint, 33, 17, 6, 3, diffusion.grid, diffusion.factor_bits)


def test_the_file_holds_the_factors_that_were_fitted(codec: CorrDiffCodec, draw: Draw) -> None:
    encoded = _encode(codec, draw(140, 260))
    header, tiles = bitstream.unpack(encoded.data)
    assert encoded.factors[0].shape == (2, 2, 2, 3)
    assert np.array_equal(decode_factors(tiles[0].factors, (2, 2, 2, 3), header.factor_bits), encoded.factors[0])


def test_compressing_twice_gives_the_same_bytes(codec: CorrDiffCodec, draw: Draw) -> None:
    assert codec.compress(draw(40, 72), steps=2) == codec.compress(draw(40, 72), steps=2)


def test_a_higher_quality_takes_more_bytes(codec: CorrDiffCodec, draw: Draw) -> None:
    sizes = [len(codec.compress(draw(64, 128), quality, steps=1)) for quality in (0, 3, 5, 7)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_bits_per_pixel_are_those_of_the_file(codec: CorrDiffCodec, draw: Draw, height: int, width: int) -> None:
    encoded = _encode(codec, draw(height, width))
    assert encoded.bpp == 8 * len(encoded.data) / (height * width)


@pytest.mark.parametrize("quality", [0, 2, 4, 7])
def test_the_streams_take_what_the_entropy_model_estimates(
    codec: CorrDiffCodec, codec_dir: Path, draw: Draw, quality: int
) -> None:
    picture = draw(128, 192)
    tile = bitstream.unpack(codec.compress(picture, quality, steps=1)).tiles[0]
    x_BCHW = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        model = load_networks(str(codec_dir))[0]
        q_B = torch.tensor([quality])
        y_BMhw, _ = model.latent(x_BCHW, q_B)
        estimate = float(model.entropy(y_BMhw, q_B, None, None).bits_B) / 8
    assert abs(len(tile.z) + len(tile.y) - estimate) <= 0.02 * estimate + 32


def test_pictures_of_a_batch_are_decoded_one_by_one(codec: CorrDiffCodec, draw: Draw) -> None:
    pictures = [draw(40, 72, seed) for seed in range(3)]
    for encoded in codec.compress_batch(pictures, Settings(quality=6, steps=2)):
        assert psnr(encoded.reconstruction, codec.decompress(encoded.data)) > 50


def test_a_picture_is_the_same_in_a_batch_and_alone(codec: CorrDiffCodec, draw: Draw) -> None:
    pictures = [draw(40, 72, seed) for seed in range(3)]
    for picture, encoded in zip(pictures, codec.compress_batch(pictures, Settings(steps=2)), strict=True):
        assert psnr(_encode(codec, picture).reconstruction, encoded.reconstruction) > 40


def test_files_of_different_qualities_are_decoded_in_one_batch(codec: CorrDiffCodec, draw: Draw) -> None:
    encoded = [_encode(codec, draw(40, 72, q), q) for q in (1, 5, 7)]
    for one, picture in zip(encoded, codec.decompress_batch([e.data for e in encoded]), strict=True):
        assert psnr(one.reconstruction, picture) > 50


def test_decoding_needs_the_bytes_and_a_codec_and_nothing_else(
    codec: CorrDiffCodec, codec_dir: Path, draw: Draw
) -> None:
    encoded = _encode(codec, draw(40, 72))
    required = [
        name
        for name, p in inspect.signature(CorrDiffCodec.decompress).parameters.items()
        if p.default is inspect.Parameter.empty
    ]
    assert required == ["self", "data"]
    assert np.array_equal(load_codec(str(codec_dir), precision="fp32").decompress(encoded.data), encoded.reconstruction)


def test_the_three_decodings_differ(codec: CorrDiffCodec, draw: Draw) -> None:
    header, tiles = bitstream.unpack(codec.compress(draw(64, 64), steps=2))
    halfway = encode_factors(np.full((2, 2, 1, 1), 7, np.uint8), header.factor_bits)
    data = bitstream.pack(header, [tiles[0]._replace(factors=halfway)])
    corrected, uncorrected, privileged = (
        codec.decompress(data, decoding) for decoding in ("corrected", "uncorrected", "privileged")
    )
    assert not np.array_equal(corrected, uncorrected)
    assert not np.array_equal(corrected, privileged)
    assert not np.array_equal(uncorrected, privileged)


def _codec_whose_privileged_decoder_says(value: float, codec_dir: Path) -> CorrDiffCodec:
    model, tables, _ = load_networks(str(codec_dir))
    last = model.decoder.layers[-1]
    assert isinstance(last, torch.nn.Conv2d)
    assert last.bias is not None
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, value)
    return CorrDiffCodec(model, tables, bytes(8))


@pytest.mark.parametrize(("value", "shown"), [(-1.0, 0), (0.5, 191), (1.0, 255), (-3.0, 0), (3.0, 255)])
def test_minus_one_to_one_is_shown_as_0_to_255(codec_dir: Path, value: float, shown: int) -> None:
    codec = _codec_whose_privileged_decoder_says(value, codec_dir)
    data = codec.compress(np.zeros((5, 7, 3), np.uint8), steps=1)
    assert np.unique(codec.decompress(data, "privileged")).tolist() == [shown]


def test_a_privileged_picture_that_is_the_original_is_taken_as_it_is(codec_dir: Path) -> None:
    codec = _codec_whose_privileged_decoder_says(40 / 127.5 - 1, codec_dir)
    encoded = _encode(codec, np.full((20, 30, 3), 40, np.uint8), fidelity=1.0)
    assert np.unique(encoded.factors).tolist() == [2**codec.config.diffusion.factor_bits - 1]
    assert np.unique(encoded.reconstruction).tolist() == [40]


def test_latents_of_a_picture_are_those_that_its_file_holds(codec: CorrDiffCodec, draw: Draw) -> None:
    picture = draw(64, 128)
    header, tiles = bitstream.unpack(codec.compress(picture, quality=6, steps=1))
    q_B = torch.tensor([int(header.quality)])
    with torch.inference_mode():
        x_BCHW = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
        latent = codec.latents_of(x_BCHW, q_B)[0][0]
        streams = LatentStreams(tiles[0].z, tiles[0].y)
        decoded = codec.tables.decode([streams], (1, 2), 16 * q_B)[0] / codec.model.gain(q_B)[0]
    assert float((latent - decoded).abs().max()) < 1e-5


TILED = [(257, 300), (300, 577), (520, 256)]


@pytest.mark.parametrize(("height", "width"), TILED)
def test_a_tiled_picture_is_decoded(codec: CorrDiffCodec, draw: Draw, height: int, width: int) -> None:
    encoded = codec.compress_batch([draw(height, width)], Settings(steps=1, tile=256))[0]
    header, tiles = bitstream.unpack(encoded.data)
    assert header.tile == 256
    assert len(tiles) == len(encoded.factors) == math.ceil(height / 256) * math.ceil(width / 256) > 1
    assert np.array_equal(codec.decompress(encoded.data), encoded.reconstruction)


def test_tiled_pictures_of_a_batch_are_decoded(codec: CorrDiffCodec, draw: Draw) -> None:
    encoded = codec.compress_batch([draw(200, 300, seed) for seed in (1, 2)], Settings(steps=1, tile=256))
    decoded = codec.decompress_batch([e.data for e in encoded])
    assert all(np.array_equal(e.reconstruction, d) for e, d in zip(encoded, decoded, strict=True))
    assert psnr(decoded[0], codec.decompress(encoded[0].data)) > 50


def test_tiles_make_little_difference_to_the_picture(codec: CorrDiffCodec, draw: Draw) -> None:
    picture = draw(300, 577)
    tiled, whole = (codec.compress_batch([picture], Settings(7, 1.0, 2, tile))[0] for tile in (256, 0))
    assert abs(len(tiled.data) - len(whole.data)) < 0.03 * len(whole.data)
    assert abs(psnr(picture, tiled.reconstruction) - psnr(picture, whole.reconstruction)) < 0.1


def test_progress_is_told_tile_by_tile(codec: CorrDiffCodec, draw: Draw) -> None:
    told: list[tuple[int, int]] = []
    data = codec.compress_batch([draw(64, 300)], Settings(steps=1, tile=256), lambda *n: told.append(n))[0].data
    codec.decompress_batch([data], on_tile=lambda *n: told.append(n))
    assert told == 2 * [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "images",
    [
        [np.zeros((8, 8, 3), np.float32)],
        [np.zeros((8, 8, 3), np.uint16)],
        [np.zeros((8, 8), np.uint8)],
        [np.zeros((8, 8, 1), np.uint8)],
        [np.zeros((8, 8, 4), np.uint8)],
        [np.zeros((0, 8, 3), np.uint8)],
        [[[1, 2, 3]]],
        [None],
    ],
)
def test_what_is_no_rgb_picture_is_refused(codec: CorrDiffCodec, images: Sequence[Picture]) -> None:
    with pytest.raises(UsageError, match="expected RGB uint8 pictures"):
        codec.compress_batch(images, Settings())


def test_pictures_of_different_sizes_are_refused_in_one_batch(codec: CorrDiffCodec, draw: Draw) -> None:
    with pytest.raises(UsageError, match="must have one size"):
        codec.compress_batch([draw(8, 8), draw(8, 9)], Settings())


def test_files_of_different_sizes_are_refused_in_one_batch(codec: CorrDiffCodec, draw: Draw) -> None:
    files = [codec.compress(draw(8, width), steps=1) for width in (8, 9)]
    with pytest.raises(UsageError, match="must agree in width"):
        codec.decompress_batch(files)


def test_an_empty_batch_is_refused(codec: CorrDiffCodec) -> None:
    with pytest.raises(UsageError, match="at least one picture"):
        codec.compress_batch([], Settings())
    with pytest.raises(UsageError, match="at least one file"):
        codec.decompress_batch([])


def test_a_picture_over_the_given_limit_is_not_decoded(codec: CorrDiffCodec, draw: Draw) -> None:
    data = codec.compress(draw(8, 9), steps=1)
    with pytest.raises(BitstreamError, match="9x8 is more than the limit of 71 pixels"):
        codec.decompress(data, max_pixels=71)


def test_a_file_of_another_codec_is_not_decoded(codec: CorrDiffCodec, draw: Draw) -> None:
    header, tiles = bitstream.unpack(codec.compress(draw(8, 8), steps=1))
    other = bytes(8)
    data = bitstream.pack(bitstream.Header(**{**vars(header), "fingerprint": other}), tiles)
    with pytest.raises(BitstreamError, match=f"codec {other.hex()}.*{codec.fingerprint.hex()}"):
        codec.decompress(data)


@pytest.mark.parametrize("part", ["factors", "z", "y"])
def test_a_stream_of_ones_is_refused_however_long(codec: CorrDiffCodec, draw: Draw, part: str) -> None:
    header, tiles = bitstream.unpack(codec.compress(draw(8, 8), steps=1))
    streams = Streams(**{**tiles[0]._asdict(), part: b"\x01" + b"\xff" * 10_000_000})
    with pytest.raises(BitstreamError, match=r"not valid: (a stream does not end|the factors name)"):
        codec.decompress(bitstream.pack(header, [streams]))


@settings(max_examples=100)
@given(position=st.floats(0, 1), change=st.integers(1, 255), cut=st.integers(0, 12))
def test_damage_under_a_right_checksum_is_refused_or_gives_a_picture(
    codec: CorrDiffCodec, position: float, change: int, cut: int
) -> None:
    body = bytearray(codec.compress(np.full((20, 30, 3), 99, np.uint8), steps=1)[:-4])
    at = 14 + int(position * (len(body) - 15))
    body[at] ^= change
    del body[at + 1 : at + 1 + cut]
    data = bytes(body) + struct.pack("<I", zlib.crc32(body))
    try:
        picture = codec.decompress(data, max_pixels=4096)
    except BitstreamError:
        return
    header = bitstream.unpack(data).header
    assert picture.shape == (header.height, header.width, 3)
