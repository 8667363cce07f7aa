"""What is built from the tree works where the tree is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from cluster import submit
from corrdiff.metrics import psnr
from corrdiff.picture import Picture

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


@pytest.fixture
def photograph(tmp_path: Path) -> Picture:
    """A photograph, which lies in the test's directory as photo.png too."""
    pixels: Picture = skimage.data.astronaut()[:192, 128:384]
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return pixels


def _run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_wheel_installs_and_works_outside_the_clone(wheel: Path, photograph: Picture, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True)

    def run(*command: object) -> str:
        return _run(*command, cwd=tmp_path, PYTHONPATH=str(site))

    where = run(
        sys.executable, "-c", "import corrdiff, pipelines.cli; print(corrdiff.__file__, pipelines.cli.__file__)"
    )
    assert all(path.startswith(str(site)) for path in where.split())
    corrdiff = site / "bin" / "corrdiff"
    assert run(corrdiff, "--version").startswith("corrdiff 0.1")

    # The codec in the box, with no argument but the files.
    Image.fromarray(photograph).save(tmp_path / "photo.jpg", quality=95)
    assert run(corrdiff, "encode", "photo.jpg").startswith("photo.crdf: 256x192, ")
    assert run(corrdiff, "decode", "photo.crdf", "shown.png") == "shown.png: 256x192"
    assert psnr(photograph, np.asarray(Image.open(tmp_path / "shown.png"))) > 20


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Path]:
    """An environment with nothing in it; it takes gigabytes, so it is removed."""
    directory = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    yield directory / "bin"
    shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_plain_package_codes_pictures_with_numpy_2_and_nothing_of_training(
    wheel: Path, photograph: Picture, empty: Path, tmp_path: Path
) -> None:
    """Needs a package index, as `pip install corrdiff` does."""

    def there(program: str, *arguments: object) -> str:
        return _run(empty / program, *arguments, cwd=tmp_path, PYTHONPATH="")

    def here(_: str, *arguments: object) -> str:
        return _run(sys.executable, "-m", "corrdiff", *arguments, cwd=tmp_path)

    there("python", "-m", "pip", "install", "--quiet", wheel)
    listed = json.loads(there("python", "-m", "pip", "list", "--format", "json"))
    versions = {package["name"].lower().replace("_", "-"): package["version"] for package in listed}
    assert int(versions["numpy"].split(".")[0]) >= 2
    assert not {"compressai", "torch-geometric", "ray", "deepspeed", "mlflow", "pyarrow"} & set(versions)

    # What is written there is read here, and the other way round.
    for write, read in ((there, here), (here, there)):
        (tmp_path / "photo.crdf").unlink(missing_ok=True)
        write("corrdiff", "encode", "photo.png", "--reconstruction", "foreseen.png", "--precision", "fp32")
        read("corrdiff", "decode", "photo.crdf", "shown.png", "--precision", "fp32")
        foreseen, shown = (np.asarray(Image.open(tmp_path / name)) for name in ("foreseen.png", "shown.png"))
        assert psnr(photograph, shown) > 20
        assert psnr(foreseen, shown) > 50
