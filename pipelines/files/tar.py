"""Members of tar files, written so that the same content gives the same bytes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """A file whose header holds nothing but its name and size; returns where its content starts."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return tar.offset - padded


def read_members(data: bytes, extension: str) -> Iterator[tuple[str, bytes]]:
    """Key and content of each file with that extension in a tar, in its order."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            if info.name.endswith(extension):
                file = tar.extractfile(info)
                assert file is not None
                yield info.name.removesuffix(extension), file.read()
