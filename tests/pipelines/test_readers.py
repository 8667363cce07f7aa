"""What training jobs import of this package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pipelines


def test_the_readers_of_compressed_datasets_are_had_from_the_package() -> None:
    from pipelines import CompressedPictures, read_compressed
    from pipelines.decompress import reader

    assert (CompressedPictures, read_compressed) == (reader.CompressedPictures, reader.read_compressed)
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        getattr(pipelines, "nothing_of_this_" + "name")


def test_the_package_alone_imports_nothing_heavy() -> None:
    code = "import sys, pipelines; sys.exit(bool({'ray', 'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
