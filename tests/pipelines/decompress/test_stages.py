from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from corrdiff import metrics
from corrdiff.codec import CorrDiffCodec
from corrdiff.errors import JobError
from corrdiff.format import bitstream
from corrdiff.format.bitstream import MAX_PIXELS
from pipelines.dataset import fields
from pipelines.dataset.parts import PictureFile
from pipelines.decompress import save, stages
from pipelines.decompress.config import DecompressConfig
from pipelines.decompress.save import Format
from pipelines.decompress.stages import Decoded, Portion
from pipelines.inputs.samples import Fields

Picture = npt.NDArray[np.uint8]
Draw = Callable[..., Picture]


def _files(codec: CorrDiffCodec, sizes: list[tuple[int, int]]) -> list[PictureFile]:
    shown = {size: codec.compress(np.zeros((*size, 3), np.uint8), steps=1) for size in set(sizes)}
    return [PictureFile(str(i), shown[size]) for i, size in enumerate(sizes)]


def test_files_of_a_part_are_cut_into_portions_by_their_pixels(
    codec: CorrDiffCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PORTION_PIXELS", 200)
    files = _files(codec, [(10, 10), (10, 10), (1, 1), (20, 20), (10, 10), (10, 10)])
    portions = list(stages.portions(files, MAX_PIXELS))
    assert [[f.key for f in portion] for portion in portions] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert [len(portion) for portion in stages.portions(files[3:], MAX_PIXELS)] == [1, 2]
    assert list(stages.portions([], MAX_PIXELS)) == []


def test_files_that_are_alike_are_decoded_together_and_come_in_their_order(
    codec: CorrDiffCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "BATCH", 2)
    batches: list[int] = []
    original = CorrDiffCodec.decompress_batch

    def spying(self: CorrDiffCodec, files: list[bytes], *args: Any) -> list[Picture]:
        batches.append(len(files))
        return original(self, files, *args)

    monkeypatch.setattr(CorrDiffCodec, "decompress_batch", spying)
    sizes = [(8, 8), (8, 8), (8, 8), (8, 9), (8, 8)]
    decoded = list(stages.decode(codec, _files(codec, sizes), "corrected", MAX_PIXELS))
    assert batches == [2, 2, 1]
    assert [(d.key, d.pixels.shape[:2]) for d in decoded] == [(str(i), size) for i, size in enumerate(sizes)]


def test_files_too_many_for_the_memory_are_decoded_in_smaller_batches_and_one_too_large_is_named(
    codec: CorrDiffCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CorrDiffCodec.decompress_batch

    def little_memory(self: CorrDiffCodec, files: list[bytes], *args: Any) -> list[Picture]:
        if len(files) > 1 or bitstream.unpack(files[0]).header.width > 8:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED\nwith much advice")
        return original(self, files, *args)

    monkeypatch.setattr(CorrDiffCodec, "decompress_batch", little_memory)
    files = _files(codec, [(8, 8), (8, 8), (8, 8), (8, 9)])
    assert [d.key for d in stages.decode(codec, files[:3], "corrected", MAX_PIXELS)] == ["0", "1", "2"]
    with pytest.raises(JobError, match=r"picture '3' is too large for the memory: .*ALLOC_FAILED$"):
        list(stages.decode(codec, files, "corrected", MAX_PIXELS))


def test_a_file_of_another_codec_is_not_decoded(codec: CorrDiffCodec) -> None:
    (file,) = _files(codec, [(8, 8)])
    header, tiles = bitstream.unpack(file.data)
    other = bitstream.Header(**{**vars(header), "fingerprint": bytes(8)})
    with pytest.raises(bitstream.BitstreamError, match=bytes(8).hex()):
        list(stages.decode(codec, [PictureFile("a", bitstream.pack(other, tiles))], "corrected", MAX_PIXELS))


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_pictures_are_saved_in_the_format_that_was_asked_for(draw: Draw, kind: Format) -> None:
    picture = draw(40, 56)
    image = Image.open(io.BytesIO(save.to_file(picture, kind)))
    assert image.format == kind.upper()
    read = np.asarray(image.convert("RGB"))
    assert np.array_equal(read, picture) if kind != "jpeg" else metrics.psnr(read, picture) > 25


def test_a_portion_is_saved_as_files_or_as_a_shard(draw: Draw, tmp_path: Path) -> None:
    pictures = [Decoded(key, draw(8, 8, i)) for i, key in enumerate(("a", "sub/b"))]
    row = {"portion": Portion(7, 1, 3, pictures)}
    expected = {"unit": 7, "portions": 3, "pictures": 2}
    assert save.save_portion(row, str(tmp_path / "files"), "png", shards=False, overwrite=False) == expected
    for p in pictures:
        assert np.array_equal(np.asarray(Image.open(tmp_path / "files" / f"{p.key}.png")), p.pixels)
    assert save.save_portion(row, str(tmp_path / "shards"), "jpeg", shards=True, overwrite=False) == expected
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["shard-00007-001.tar"]
    with tarfile.open(tmp_path / "shards" / "shard-00007-001.tar") as tar:
        assert tar.getnames() == ["a.jpg", "sub/b.jpg"]


@pytest.mark.parametrize("key", ["../a", "a/../../b", "/etc/a", ".."])
def test_a_key_that_leads_out_of_the_directory_is_refused(draw: Draw, tmp_path: Path, key: str) -> None:
    portion = Portion(0, 0, 1, [Decoded(f"{key}/x", draw(8, 8))])
    with pytest.raises(JobError, match="no path inside a directory"):
        save.save_portion({"portion": portion}, str(tmp_path / "out"), "png", shards=False, overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "a..b/c.png", "..a.png", "a/b/c.png"])
def test_an_ordinary_key_is_taken_as_it_is(name: str) -> None:
    assert save._safe(name) == name


def test_a_picture_is_written_over_where_that_is_allowed_and_else_named(draw: Draw, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"somebody's")
    row = {"portion": Portion(0, 0, 1, [Decoded("a", draw(8, 8))])}
    with pytest.raises(JobError, match=r"a\.png exists, and is none of this job's"):
        save.save_portion(row, str(tmp_path), "png", shards=False, overwrite=False)
    assert (tmp_path / "a.png").read_bytes() == b"somebody's"
    for overwrite in (True, False):  # what is there with the same bytes is no other file
        save.save_portion(row, str(tmp_path), "png", shards=False, overwrite=overwrite)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), draw(8, 8))


def test_a_name_that_a_disk_just_takes_is_written(draw: Draw, tmp_path: Path) -> None:
    key = "写" * 83 + "x"
    row = {"portion": Portion(0, 0, 1, [Decoded(key, draw(8, 8))])}
    save.save_portion(row, str(tmp_path), "png", shards=False, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [f"{key}.png"]
    row = {"portion": Portion(0, 0, 1, [Decoded(key + "xx", draw(8, 8))])}
    with pytest.raises(JobError, match=r"cannot write .*: File name too long"):
        save.save_portion(row, str(tmp_path), "png", shards=False, overwrite=True)


def test_a_codec_other_than_the_one_that_a_job_began_with_is_refused(codec_dir: Path, codec: CorrDiffCodec) -> None:
    config = DecompressConfig(precision="fp32")
    assert stages.Decoder(str(codec_dir), "cpu", config, codec.fingerprint.hex() + 48 * "0").codec
    with pytest.raises(JobError, match=r"is another one now: the job began with 0{16}, and [0-9a-f]{16} is there"):
        stages.Decoder(str(codec_dir), "cpu", config, 64 * "0")


def test_a_shard_has_what_travels_with_its_pictures_and_says_where_that_has_their_name(
    draw: Draw, tmp_path: Path
) -> None:
    members = (("txt", b"caption"), ("seg.PNG", b"mask"))
    portion = Portion(
        0, 0, 1, [Decoded("a", draw(8, 8), Fields(members)), Decoded("b", draw(8, 8), Fields(members[:1]))]
    )
    save.save_portion({"portion": portion}, str(tmp_path), "png", shards=True, overwrite=False)
    with tarfile.open(tmp_path / "shard-00000-000.tar") as tar:
        assert tar.getnames() == ["a.png", "a.txt", "a.seg.PNG", "b.png", "b.txt"]
        assert tar.extractfile("a.seg.PNG").read() == b"mask"  # type: ignore[union-attr]
    same = Portion(1, 0, 1, [Decoded("a", draw(8, 8), Fields((("PNG", b"another"),)))])
    with pytest.raises(JobError, match=r"a \.png travels with the picture 'a': choose another --format"):
        save.save_portion({"portion": same}, str(tmp_path), "png", shards=True, overwrite=False)
    save.save_portion({"portion": same}, str(tmp_path), "webp", shards=True, overwrite=False)


@pytest.mark.parametrize("picture", [None, pa.struct([("path", pa.string())]), pa.string()], ids=str)
def test_a_shard_of_a_table_is_a_table_with_the_pictures_in_their_column(
    draw: Draw, tmp_path: Path, picture: pa.DataType | None
) -> None:
    columns = {"n": pa.array([7, None], pa.int16())}
    if picture is not None:
        columns["image"] = pa.array([{"path": "x"}, None] if picture != pa.string() else ["x", None], picture)
    rows = [fields._stream(pa.table(columns).slice(i, 1)) for i in range(2)]
    pictures = [Decoded(f"t/{i}", draw(8, 8, i), Fields(row=row)) for i, row in enumerate(rows)]
    row = {"portion": Portion(0, 0, 1, pictures)}
    assert save.save_portion(row, str(tmp_path), "png", shards=True, overwrite=False, column="image")["pictures"] == 2
    table = pq.read_table(tmp_path / "shard-00000-000.parquet")
    assert table["n"].type == pa.int16()
    assert table["n"].to_pylist() == [7, None]
    cells = table["image"].to_pylist()
    assert [cell["path"] for cell in cells if picture is not None] == ([] if picture is None else ["x", None])
    for cell, p in zip(cells, pictures, strict=True):
        file = cell if picture is None else cell["bytes"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file))), p.pixels)
