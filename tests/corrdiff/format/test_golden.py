"""Files that were written once: they must decode for ever, to the same y_hat bit for bit.

The codecs have random weights and a few channels. Of version 1, by `golden/codec`: `untiled.crdf` is a picture of 90x70
pixels in 3 steps, with one factor of 3 bits for all of it; `tiled.crdf` one of 400x330 in 2 steps and four tiles, with
cells of 48 pixels. Of version 2, by `golden/codec-sliced`, with context: `sliced.crdf` at quality 4.4375, 90x70,
`sliced-tiled.crdf` at 6.5, 300x200, two tiles, `sliced-no-steps.crdf` at 1.0625; by `golden/codec-paper`, without
context and from noise: `paper.crdf` at 5.875. The pictures are what fp32 on a CPU made of them then.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import pytest

from corrdiff import coding, load_codec
from corrdiff.codec import CorrDiffCodec
from corrdiff.format import bitstream
from corrdiff.format.noise import format_noise
from corrdiff.images import open_image
from corrdiff.metrics import psnr
from tests.support.drawn import draw
from tests.support.second_reader import read_file

GOLDEN = Path(__file__).parents[2] / "golden"

CODECS = {
    "untiled": "codec", "tiled": "codec", "sliced": "codec-sliced", "sliced-tiled": "codec-sliced",
    "sliced-no-steps": "codec-sliced", "paper": "codec-paper",
}  # fmt: skip
SIZES = {"tiled": (400, 330), "sliced-tiled": (300, 200)}
"""Width and height; the others are 90x70."""

Y_HAT_SHA256 = {
    "untiled": "5fcb26da66ba639cf89615c110501a6490c62d3d24c9ca27cedbfc62c8d5e24e",
    "tiled": "8295465c9df471211198288c6f1027decd73c6c469b5fe01afcc8ca0b3d54de6",
    "sliced": "0d416b16767d06639e73538cc3879cd9aa1b1b7a982b4ca7f3bcd5ff97d77301",
    "sliced-tiled": "67ce81a82fdb62d0f6ad648bc31b4b24c7c0c57529f08ec2e86bc81811f0eaa3",
    "sliced-no-steps": "fdf8f6760c44a26f6d1e2ed4bd43be84b9afe1a635cde0ab74298e06bb8062d4",
    "paper": "b07cf5238639d4630fcf6591e81232261d572f52eb177685f8122f4e6b128b38",
}


@functools.cache
def codec_of(name: str) -> CorrDiffCodec:
    return load_codec(str(GOLDEN / CODECS[name]), precision="fp32")


def _latents_and_factors(name: str) -> list[tuple[np.ndarray, np.ndarray]]:  # type: ignore[type-arg]
    codec = codec_of(name)
    parsed = bitstream.unpack((GOLDEN / f"{name}.crdf").read_bytes(), codec.fingerprint)
    return [
        (
            coding.read_latents([parsed], tile, codec.tables)[0].numpy(),
            coding.read_factors(parsed, tile).numpy(),
        )
        for tile in coding.layout_of(parsed.header)
    ]


@pytest.mark.parametrize("name", CODECS)
def test_y_hat_is_what_it_was(name: str) -> None:
    digest = hashlib.sha256(b"".join(y.astype("<f4").tobytes() for y, _ in _latents_and_factors(name)))
    assert digest.hexdigest() == Y_HAT_SHA256[name]


@pytest.mark.parametrize("name", CODECS)
def test_a_reader_written_from_the_documentation_finds_the_same(name: str) -> None:
    header, tiles = read_file((GOLDEN / f"{name}.crdf").read_bytes(), GOLDEN / CODECS[name])
    assert (header["width"], header["height"]) == SIZES.get(name, (90, 70))
    for tile, (y_hat, factors) in zip(tiles, _latents_and_factors(name), strict=True):
        assert np.array_equal(tile.y_hat, y_hat)
        assert tile.factors.shape == factors.shape
        assert np.allclose(tile.factors, factors, atol=1e-6)


@pytest.mark.parametrize("name", CODECS)
def test_the_picture_is_what_it_was_up_to_rounding(name: str) -> None:
    expected = open_image((GOLDEN / f"{name}.png").read_bytes()).pixels
    assert psnr(expected, codec_of(name).decompress((GOLDEN / f"{name}.crdf").read_bytes())) > 50


@pytest.mark.parametrize("quality", [0.0, 2.3125, 7.0])
def test_the_second_reader_reads_what_is_written_now(sliced_dir: Path, quality: float) -> None:
    codec = load_codec(str(sliced_dir), precision="fp32")
    data = codec.compress(draw(130, 70), quality, steps=1)
    (tile,) = read_file(data, sliced_dir)[1]
    parsed = bitstream.unpack(data)
    (place,) = coding.layout_of(parsed.header)
    assert np.array_equal(tile.y_hat, coding.read_latents([parsed], place, codec.tables)[0].numpy())


def test_the_noise_is_what_it_was() -> None:
    noise = format_noise(70, 90, top=1000, left=333).numpy().astype("<f4").tobytes()
    assert hashlib.sha256(noise).hexdigest() == "8ec2f6a26bf058c1d9631374443d1b74b555b836422286736f8951a24d0d9d57"
