"""The codecs that people know do what their descriptions say."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from corrdiff.metrics import psnr
from corrdiff.picture import Picture
from pipelines.display.curves import OURS
from pipelines.evaluate import anchors
from pipelines.evaluate.config import ANCHOR_NAMES


@pytest.fixture(scope="module")
def photograph() -> Picture:
    return np.ascontiguousarray(skimage.data.astronaut()[:256, :384])


@pytest.mark.parametrize("name", anchors.ANCHORS)
def test_higher_qualities_are_larger_files_and_better_pictures(name: str, photograph: Picture) -> None:
    files = [anchors.encode(name, photograph, quality) for quality in anchors.ANCHORS[name].qualities]
    decoded = [anchors.decode(name, file) for file in files]
    assert all(picture.shape == photograph.shape for picture in decoded)
    found = [psnr(photograph, picture) for picture in decoded]
    assert (np.diff([len(file) for file in files]) > 0).all(), [len(file) for file in files]
    assert (np.diff(np.array(found, dtype=np.float64)) > 0).all(), found
    assert 8 * len(files[0]) / (256 * 384) < 0.35 and found[-1] is not None and found[-1] > 34


def test_every_anchor_can_be_named_and_has_a_colour_of_its_own() -> None:
    assert set(ANCHOR_NAMES) == anchors.ANCHORS.keys()
    colors = {anchor.color for anchor in anchors.ANCHORS.values()}
    assert len(colors) == len(anchors.ANCHORS) and colors.isdisjoint(OURS)


def test_jpeg_2000_has_its_colour_transform(photograph: Picture) -> None:
    file = anchors.encode("jpeg2000", photograph, 0.4)
    cod = file.index(b"\xff\x52")  # ISO/IEC 15444-1, A.6.1: Lcod 2, Scod 1, progression 1, layers 2, then the transform
    assert file[cod + 8] == 1
    assert file[cod + 13] == 0, "the wavelet is the irreversible one"


def test_a_picture_that_an_encoder_refuses_is_an_error_of_one_kind() -> None:
    wide = np.zeros((1, 16384, 3), np.uint8)
    with pytest.raises(OSError, match="WebP"):
        anchors.encode("webp", wide, 30)
    with pytest.raises(OSError, match="JPEG XL"):
        anchors.decode("jxl", b"\xff\x0a no more")
