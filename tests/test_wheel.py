"""What is built from the tree works where the tree is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from cluster import submit
from corrdiff.metrics import psnr

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """What is in the repository, and what is new and not ignored, as paths from the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in said.split("\0") if name and (ROOT / name).exists()]


@pytest.fixture(scope="module")
def wheel(tracked: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the repository: what an earlier build left in the clone has no part in it."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    subprocess.run(build, check=True, capture_output=True)
    (made,) = out.glob("*.whl")
    return made


def test_a_wheel_and_a_job_hold_the_files_that_the_repository_has_in_the_packages(
    tracked: list[Path], wheel: Path
) -> None:
    there = {str(path) for path in tracked if path.parts[0] in submit.PACKAGES}
    with submit.packaged() as directory:
        sent = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}
    built = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert sent == there
    assert built == there
    assert "pipelines/evaluate/page.html" in there


def test_a_wheel_installs_and_works_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
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
