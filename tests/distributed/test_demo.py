"""The demonstration, whole: what a person who types `make demo` is promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.demo import QUALITIES, demo


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demonstration_keeps_its_promises(ray_cluster: None, tmp_path: Path, tracking: str) -> None:
    measured = demo(tmp_path)
    pictures = {m.key for m in measured}
    assert pictures == {"chelsea", "coffee"}
    for key in pictures:
        rows = [m for m in measured if m.key == key]
        assert [m.quality for m in rows] == list(QUALITIES)
        assert rows[0].bytes < rows[1].bytes < rows[2].bytes
        assert any(0.05 <= m.bpp <= 0.6 and m.psnr_privileged_db >= 20 for m in rows)
        for m in rows:
            assert m.psnr_corrected_db[0] >= m.psnr_uncorrected_db + 1
            assert m.psnr_corrected_db[0] > m.psnr_corrected_db[1] > m.psnr_corrected_db[2]
    assert np.asarray(Image.open(tmp_path / "report.png")).std() > 10
    assert len(list((tmp_path / "decompressed").glob("*.png"))) == 10
    assert (tmp_path / "compressed" / "summary.json").is_file()
