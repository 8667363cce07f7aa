"""How large a picture may be, and that nobody else in the process is concerned."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from corrdiff.images import ImageError, open_image
from corrdiff.picture import Picture
from tests.support.image_files import file_of

Draw = Callable[..., Picture]


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """Pillow's own limit, so low that the test's pictures are more than twice as large."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    return 1000


def test_importing_changes_nothing_in_the_process() -> None:
    code = (
        "import logging, warnings\nimport numpy\nfrom PIL import Image\n"
        "def state(): return Image.MAX_IMAGE_PIXELS, list(warnings.filters), logging.getLogger('PIL').handlers[:]\n"
        "before = state()\nimport corrdiff.images\nassert state() == before, state()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {}),
     ("BMP", {})],
)  # fmt: skip
def test_a_picture_beyond_pillows_limit_is_opened_where_ours_allows_it(
    draw: Draw, low_limit: int, kind: str, options: dict[str, Any]
) -> None:
    data = file_of(Image.fromarray(draw(60, 50)), kind, **options)
    assert open_image(data, max_pixels=3000).pixels.shape == (60, 50, 3)
    assert low_limit == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match="more than the limit of 2999 pixels"):
        open_image(data, max_pixels=2999)
    assert low_limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("error")
def test_a_picture_at_which_pillow_would_warn_is_opened_without_a_warning(draw: Draw, low_limit: int) -> None:
    data = file_of(Image.fromarray(draw(30, 50)), "TIFF")
    assert open_image(data).pixels.shape == (30, 50, 3)
    assert low_limit == Image.MAX_IMAGE_PIXELS


def test_threads_that_open_large_pictures_leave_pillows_limit_as_it_was(draw: Draw, low_limit: int) -> None:
    files = [file_of(Image.fromarray(draw(60, 50, seed)), kind) for seed, kind in enumerate(("WEBP", "TIFF", "PNG"))]
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(open_image, 20 * files))
    assert all(o.pixels.shape == (60, 50, 3) for o in opened)
    assert low_limit == Image.MAX_IMAGE_PIXELS
