"""What is built from the tree works where the tree is not."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from corrdiff.metrics import psnr

ROOT = Path(__file__).parent.parent


def test_a_wheel_installs_and_works_outside_the_clone(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"corrdiff", "pipelines", "cluster"}
    assert "pipelines/evaluate/page.html" in names
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    where = run(
        sys.executable, "-c", "import corrdiff, pipelines.cli; print(corrdiff.__file__, pipelines.cli.__file__)"
    )
    assert all(path.startswith(str(site)) for path in where.split())
    corrdiff = str(site / "bin" / "corrdiff")
    assert run(corrdiff, "--version").startswith("corrdiff 0.1")

    # The codec in the box, with no argument but the files.
    pixels = skimage.data.astronaut()[:192, 128:384]
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    assert run(corrdiff, "encode", "photo.jpg").startswith("photo.crdf: 256x192, ")
    assert run(corrdiff, "decode", "photo.crdf") == "photo.png: 256x192"
    assert psnr(pixels, np.asarray(Image.open(tmp_path / "photo.png"))) > 20
