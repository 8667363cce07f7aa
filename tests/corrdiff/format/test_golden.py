"""Files that version 1 wrote once: they must decode for ever, to the same y_hat bit for bit.

`golden/codec` has random weights and a few channels. `untiled.crdf` is a picture of 90x70 pixels in 3 steps, with one
factor of 3 bits for all of it; `tiled.crdf` one of 400x330 in 2 steps and four tiles, with cells of 48 pixels. The
pictures are what fp32 on a CPU made of them then.
"""

from __future__ import annotations

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
from tests.support.second_reader import read_file

GOLDEN = Path(__file__).parents[2] / "golden"

Y_HAT_SHA256 = {
    "untiled": "5fcb26da66ba639cf89615c110501a6490c62d3d24c9ca27cedbfc62c8d5e24e",
    "tiled": "8295465c9df471211198288c6f1027decd73c6c469b5fe01afcc8ca0b3d54de6",
}


@pytest.fixture(scope="module")
def golden() -> CorrDiffCodec:
    return load_codec(str(GOLDEN / "codec"), precision="fp32")


def _latents_and_factors(golden: CorrDiffCodec, name: str) -> list[tuple[np.ndarray, np.ndarray]]:  # type: ignore[type-arg]
    parsed = bitstream.unpack((GOLDEN / f"{name}.crdf").read_bytes(), golden.fingerprint)
    return [
        (
            coding.read_latents([parsed], tile, golden.tables)[0].numpy(),
            coding.read_factors(parsed, tile).numpy(),
        )
        for tile in coding.layout_of(parsed.header)
    ]


@pytest.mark.parametrize("name", ["untiled", "tiled"])
def test_y_hat_is_what_it_was(golden: CorrDiffCodec, name: str) -> None:
    digest = hashlib.sha256(b"".join(y.astype("<f4").tobytes() for y, _ in _latents_and_factors(golden, name)))
    assert digest.hexdigest() == Y_HAT_SHA256[name]


@pytest.mark.parametrize("name", ["untiled", "tiled"])
def test_a_reader_written_from_the_documentation_finds_the_same(golden: CorrDiffCodec, name: str) -> None:
    header, tiles = read_file((GOLDEN / f"{name}.crdf").read_bytes(), GOLDEN / "codec")
    assert (header["width"], header["height"]) == {"untiled": (90, 70), "tiled": (400, 330)}[name]
    for tile, (y_hat, factors) in zip(tiles, _latents_and_factors(golden, name), strict=True):
        assert np.array_equal(tile.y_hat, y_hat)
        assert np.allclose(tile.factors, factors, atol=1e-6)


@pytest.mark.parametrize("name", ["untiled", "tiled"])
def test_the_picture_is_what_it_was_up_to_rounding(golden: CorrDiffCodec, name: str) -> None:
    expected = open_image((GOLDEN / f"{name}.png").read_bytes()).pixels
    assert psnr(expected, golden.decompress((GOLDEN / f"{name}.crdf").read_bytes())) > 50


def test_the_noise_is_what_it_was() -> None:
    noise = format_noise(70, 90, top=1000, left=333).numpy().astype("<f4").tobytes()
    assert hashlib.sha256(noise).hexdigest() == "8ec2f6a26bf058c1d9631374443d1b74b555b836422286736f8951a24d0d9d57"
