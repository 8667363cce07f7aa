from __future__ import annotations

import torch

from corrdiff.texture import texture_error
from tests.support.estimates import three_pictures


def test_texture_error_of_a_picture_with_itself_is_0() -> None:
    x_0 = three_pictures(33, 47)[0]
    assert torch.equal(texture_error(x_0, x_0), torch.zeros(2))


def test_texture_error_sees_blur() -> None:
    x_0 = three_pictures(64, 64)[0]
    blurred = torch.nn.functional.avg_pool2d(x_0, 3, stride=1, padding=1)
    assert (texture_error(x_0, blurred) > 0.5).all()
