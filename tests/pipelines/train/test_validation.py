"""What a training shows of its codec's quality."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipelines.train import validation


def _found(shift: float) -> dict[str, float]:
    return {
        f"val/q{q}/{name}": value
        for q in (1, 4, 7)
        for name, value in {
            "bpp": 0.1 * q, "psnr_db": 20 + q + shift, "psnr_db_decoder": 21 + q + shift,
            "psnr_db_uncorrected": 19 + q + shift, "texture_error": 1.0,
        }.items()
    }  # fmt: skip


def test_the_curve_of_a_training_moves_over_its_earlier_ones() -> None:
    one, two = (np.asarray(Image.open(io.BytesIO(validation.draw(history)))) for history in (
        [_found(0)], [_found(0), _found(5)],
    ))  # fmt: skip
    assert one.shape == two.shape  # PSNR and texture error; what was not measured has no panel
    assert (one != two).any()
    wide = np.asarray(Image.open(io.BytesIO(validation.draw([{**_found(0), "val/q4/lpips": 0.3}]))))
    assert wide.shape[1] > one.shape[1]
