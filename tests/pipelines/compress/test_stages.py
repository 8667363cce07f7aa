from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from corrdiff import coding, metrics, perceptual
from corrdiff.codec import CorrDiffCodec, Pending, Settings
from corrdiff.errors import JobError, UsageError
from corrdiff.format import bitstream
from corrdiff.format.bitstream import MAX_PIXELS
from corrdiff.images import save_png
from pipelines.compress import job as batch_compress
from pipelines.compress import read as opening
from pipelines.compress import write as parts
from pipelines.compress.config import CompressConfig
from pipelines.compress.encode_code import Coder, Encoder
from pipelines.compress.read import Chunk, Opened
from pipelines.compress.tally import Assembly, Progress, Tally
from pipelines.compress.write import Done
from pipelines.dataset import format as compressed
from pipelines.dataset.format import COLUMNS, Member, Plan, Record
from pipelines.decompress import stages as decompress_stages
from pipelines.decompress.stages import File
from pipelines.files import storage
from pipelines.inputs.units import Found

Picture = npt.NDArray[np.uint8]
Draw = Callable[..., Picture]
QUICK = CompressConfig(steps=1, precision="fp32")


@pytest.fixture(autouse=True)
def _no_lpips(monkeypatch: pytest.MonkeyPatch, threads: Callable[[int], None]) -> None:
    """LPIPS is left out, whatever this machine has; stages set torch's threads, which are restored."""
    monkeypatch.setattr(perceptual, "lpips_weights", lambda given=None: None)


def _found(pictures: list[Picture]) -> list[Found]:
    return [Found(f"k/{i}", f"/in/{i}.png", save_png(p)) for i, p in enumerate(pictures)]


def _flat(height: int, width: int, count: int) -> list[Picture]:
    return [np.full((height, width, 3), i % 256, np.uint8) for i in range(count)]


def _open(found: list[Found], batch: int = 4, max_pixels: int = 1 << 28) -> list[Chunk]:
    return list(opening.open_unit(5, found, batch, max_pixels))


def _encode(pictures: list[Picture], codec: str, config: CompressConfig = QUICK) -> list[Chunk]:
    encoder = Encoder(codec, config, "cpu")
    return [encoder({"chunk": chunk})["chunk"] for chunk in _open(_found(pictures), config.batch)]


def _code(chunks: list[Chunk], codec: str) -> list[Done]:
    coder = Coder(codec, None)
    coded = [coder({"chunk": chunk})["chunk"] for chunk in chunks]
    return [done for chunk in coded for done in chunk.pictures]


# --- read


def test_every_picture_of_a_unit_comes_once_and_the_last_chunk_says_how_many() -> None:
    pictures = [*_flat(4, 6, 5), *_flat(6, 4, 3), *_flat(4, 6, 2)]
    chunks = _open(_found(pictures))
    assert [c.unit for c in chunks] == [5] * len(chunks)
    assert [c.total for c in chunks] == [None] * (len(chunks) - 1) + [10]
    opened = sorted((p for c in chunks for p in c.pictures), key=lambda p: p.place)
    assert [p.place for p in opened] == list(range(10))
    assert [p.key for p in opened] == [f"k/{i}" for i in range(10)]
    assert all(np.array_equal(p.pixels, picture) for p, picture in zip(opened, pictures, strict=True))


def test_an_empty_unit_is_one_empty_chunk() -> None:
    (chunk,) = _open([])
    assert (chunk.pictures, chunk.total) == ([], 0)


def test_pictures_of_one_size_follow_each_other() -> None:
    pictures = [p for pair in zip(_flat(4, 6, 6), _flat(6, 4, 6), strict=True) for p in pair]
    shapes = [p.pixels.shape for c in _open(_found(pictures)) for p in c.pictures]
    assert len([*itertools.groupby(shapes)]) == 2


def test_a_size_of_which_there_are_enough_goes_on_in_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "READY_PIXELS", 64)
    taken: list[int] = []

    def counting() -> Iterator[Found]:
        for i, found in enumerate(_found(_flat(4, 8, 9))):
            taken.append(i)
            yield found

    chunks = opening.open_unit(0, counting(), 4, 1 << 28)
    assert [p.place for p in next(chunks).pictures] == [0, 1, 2, 3]
    assert len(taken) == 4
    assert [len(c.pictures) for c in chunks] == [4, 1, 0]


def test_what_waits_for_others_of_its_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "HELD_PIXELS", 100)
    taken: list[int] = []

    def counting() -> Iterator[Found]:
        for i, found in enumerate(_found([np.zeros((1, 20 + i, 3), np.uint8) for i in range(30)])):
            taken.append(i)
            yield found

    came = 0
    for chunk in opening.open_unit(0, counting(), 4, 1 << 28):
        assert sum(20 + i for i in taken[came:]) <= 100 + 50
        came += len(chunk.pictures)
    assert came == 30


def test_the_last_of_a_unit_are_cut_into_chunks_of_like_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "CHUNK_PIXELS", 100)
    chunks = _open(_found([*_flat(5, 6, 7), *_flat(20, 20, 1)]))
    assert [[p.size for p in c.pictures] for c in chunks] == [[30] * 3, [30] * 3, [30], [400], []]


def test_what_cannot_be_opened_is_a_failure_with_its_reason_and_place() -> None:
    good = save_png(np.zeros((4, 4, 3), np.uint8))
    found = [
        Found("a", "a.png", None, "there is no such file"), Found("b", "b.png", good), Found("c", "c.png", b""),
        Found("d", "d.png", b"no picture"), Found("e", "e.png", good[:-30]),
        Found("f", "f.png", save_png(np.zeros((5, 4, 3), np.uint8))),
    ]  # fmt: skip
    chunks = _open(found, max_pixels=19)
    opened = sorted((p for c in chunks for p in c.pictures), key=lambda p: p.place)
    assert [p.key for p in opened] == list("abcdef")
    assert [p.pixels is None for p in opened] == [True, False, True, True, True, True]
    assert opened[0].error == "there is no such file"
    assert opened[2].error == "the file is empty"
    assert "not a picture" in opened[3].error
    assert opened[4].error
    assert "4x5 is more than the limit of 19 pixels" in opened[5].error
    assert chunks[-1].total == 6


# --- encode


def test_pictures_are_encoded_with_the_settings_and_in_their_order(
    codec_dir: Path, codec: CorrDiffCodec, draw: Draw
) -> None:
    pictures = [draw(16, 24, i) for i in range(3)]
    config = CompressConfig(quality=6, fidelity=1.0, steps=1, batch=4, precision="fp32")
    encoded = [e for c in _encode(pictures, str(codec_dir), config) for e in c.pictures]
    expected = codec.compress_batch(pictures, Settings(6, 1.0, 1))
    assert [e.opened.place for e in encoded] == [0, 1, 2]
    assert {e.quality_source for e in encoded} == {"encoder replay"}
    for one, other in zip(encoded, expected, strict=True):
        assert coding.write(one.pending, codec.tables) == other.data
        assert np.array_equal(one.shown, other.reconstruction)


def test_batches_are_of_one_size_and_no_larger_than_asked(
    codec_dir: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[tuple[int, ...]]] = []
    original = CorrDiffCodec.encode_batch

    def spying(self: CorrDiffCodec, images: list[Picture], *rest: Any) -> list[Pending]:
        batches.append([i.shape[:2] for i in images])
        return original(self, images, *rest)

    monkeypatch.setattr(CorrDiffCodec, "encode_batch", spying)
    pictures = [draw(16, 16), draw(16, 20), draw(16, 16), draw(16, 20), draw(16, 16)]
    _encode(pictures, str(codec_dir), CompressConfig(steps=1, batch=2, precision="fp32"))
    assert batches == [[(16, 16)] * 2, [(16, 16)], [(16, 20)] * 2]


def test_verified_pixels_are_those_of_the_decoded_file(codec_dir: Path, codec: CorrDiffCodec, draw: Draw) -> None:
    config = CompressConfig(steps=1, verify="pixels:0.5", precision="fp32")
    pictures = [draw(16, 16, i) for i in range(4)]
    encoded = [e for c in _encode(pictures, str(codec_dir), config) for e in c.pictures]
    sources = {e.opened.key: e.quality_source for e in encoded}
    assert set(sources.values()) == {"decoded file", "encoder replay"}
    for e in encoded:
        assert (sources[e.opened.key] == "decoded file") == config.verifies_pixels(e.opened.key)
    checked = [e for e in encoded if e.quality_source == "decoded file"]
    decoded = codec.decompress_batch([coding.write(e.pending, codec.tables) for e in checked])
    assert all(np.array_equal(e.shown, picture) for e, picture in zip(checked, decoded, strict=True))


def test_a_batch_too_large_for_the_memory_is_tried_one_by_one(
    codec_dir: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = CorrDiffCodec.encode_batch

    def little_memory(self: CorrDiffCodec, images: list[Picture], *rest: Any) -> list[Pending]:
        if sum(i.size for i in images) > 16 * 16 * 3:
            raise torch.OutOfMemoryError("out of memory\nwith much advice")
        return original(self, images, *rest)

    monkeypatch.setattr(CorrDiffCodec, "encode_batch", little_memory)
    encoded = [e for c in _encode([*[draw(16, 16)] * 3, draw(16, 17)], str(codec_dir)) for e in c.pictures]
    assert [e.error for e in encoded] == ["", "", "", "too large for the memory: out of memory"]
    assert [e.pending is None for e in encoded] == [False, False, False, True]


def test_failures_pass_through_all_stages(codec_dir: Path) -> None:
    chunk = Chunk(0, [Opened(0, "a", "a.png", None, error="there is no such file")], 1, {})
    chunk = Encoder(str(codec_dir), QUICK, "cpu")({"chunk": chunk})["chunk"]
    chunk = Coder(str(codec_dir), None)({"chunk": chunk})["chunk"]
    (done,) = chunk.pictures
    assert (chunk.total, done.data, done.row["key"], done.row["source"]) == (1, None, "a", "a.png")
    assert (done.row["status"], done.row["error"]) == ("failed", "there is no such file")
    assert set(done.row) == set(COLUMNS.names)


def test_each_stage_says_what_it_took(codec_dir: Path, draw: Draw) -> None:
    (chunk, last) = _encode([draw(16, 16)], str(codec_dir))
    chunk = Coder(str(codec_dir), None)({"chunk": chunk})["chunk"]
    assert set(chunk.seconds) == {"read", "encode", "code"}
    assert all(s > 0 for s in chunk.seconds.values())
    assert set(last.seconds) == {"read", "encode"}


# --- code


def test_a_row_describes_its_file(codec_dir: Path, codec: CorrDiffCodec, draw: Draw) -> None:
    picture = draw(16, 24)
    (done,) = _code(_encode([picture], str(codec_dir)), str(codec_dir))
    assert done.data is not None
    shown = codec.decompress(done.data)
    row = done.row
    assert (row["key"], row["source"], row["width"], row["height"]) == ("k/0", "/in/0.png", 24, 16)
    assert row["bytes"] == len(done.data)
    assert row["bpp"] == 8 * len(done.data) / (16 * 24)
    assert row["psnr_db"] == pytest.approx(metrics.psnr(picture, shown), abs=0.01)
    assert row["texture_error"] == pytest.approx(metrics.texture_error(picture, shown), abs=0.01)
    assert (row["ms_ssim"], row["lpips"]) == (None, None)
    assert (row["status"], row["error"], row["quality"], row["quality_source"]) == ("ok", None, 4, "encoder replay")


def test_a_picture_without_loss_has_no_psnr(codec_dir: Path, draw: Draw) -> None:
    chunks = _encode([draw(16, 16)], str(codec_dir))
    exact = [c._replace(pictures=[e._replace(shown=e.opened.pixels) for e in c.pictures]) for c in chunks]
    (done,) = _code(exact, str(codec_dir))
    assert (done.row["status"], done.row["psnr_db"]) == ("ok", None)


def test_a_file_that_says_something_else_is_a_failure(
    codec_dir: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = _encode([draw(16, 16, 0), draw(16, 16, 1)], str(codec_dir))
    original, written = coding.write, []

    def damaged_once(pending: Pending, tables: Any) -> bytes:
        data = original(pending, tables)
        written.append(data)
        return data[:20] + bytes([data[20] ^ 1]) + data[21:] if len(written) == 1 else data

    monkeypatch.setattr(coding, "write", damaged_once)
    bad, good = _code(chunks, str(codec_dir))
    assert (bad.data, bad.row["status"]) == (None, "failed")
    assert bad.row["error"].startswith("verification: ")
    assert (good.data, good.row["status"]) == (written[1], "ok")


def test_latents_that_the_file_does_not_decode_to_are_a_failure(codec_dir: Path, draw: Draw) -> None:
    (chunk, *_) = _encode([draw(16, 16)], str(codec_dir))
    (encoded,) = chunk.pictures
    symbols = encoded.pending.symbols[0]
    other = symbols._replace(y_hat_Mhw=symbols.y_hat_Mhw + 1)
    changed = encoded._replace(pending=encoded.pending._replace(symbols=[other]))
    (done,) = _code([chunk._replace(pictures=[changed])], str(codec_dir))
    assert (done.data, done.row["error"]) == (None, "verification: the latents of tile 0 decode to something else")


# --- write


def _done(place: int, data: bytes | None, key: str | None = None) -> Done:
    row: dict[str, Any] = dict.fromkeys(COLUMNS.names)
    row |= {"key": key or f"k{place}", "source": f"/in/{place}.png", "status": "ok" if data is not None else "failed"}
    if data is not None:
        row |= {"width": 10 + place, "height": 20, "bytes": len(data), "quality": 4}
    else:
        row |= {"error": "why"}
    return Done(place, row, data, ("rotated",) if place == 1 else ())


@pytest.fixture(params=["local", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place for a dataset."""
    return str(tmp_path / "out") if request.param == "local" else f"memory://stages{tmp_path}"


def test_a_unit_becomes_a_part_and_a_record_of_it(out: str) -> None:
    done = [_done(2, b"c" * 700), _done(0, b"a" * 10), _done(3, None), _done(1, b"b" * 513, "deep/" + "n" * 150)]
    record = parts.write_unit(out, 4, done, {"read": 1.0})
    assert record == compressed.read_record(out, 4)
    assert (record.unit, record.pictures, record.failures) == (4, 4, 1)
    assert (record.bytes, record.pixels) == (1223, 20 * (10 + 11 + 12))
    assert set(record.seconds) == {"read", "write"}
    for file in (record.tar, record.parquet):
        data = storage.read_bytes(storage.join(out, file.name))
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        assert file.name.startswith(f"part-00004-{file.sha256[:12]}.")
    rows = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(out, record.parquet.name))))
    assert rows.schema.equals(COLUMNS)
    listed = rows.to_pylist()
    assert [r["source"] for r in listed] == [f"/in/{i}.png" for i in range(4)]
    for row, data in zip(listed, [b"a" * 10, b"b" * 513, b"c" * 700], strict=False):
        member = Member(row["key"], row["part"], row["offset"], row["bytes"])
        assert compressed.read_member(out, member) == data
    assert (listed[3]["part"], listed[3]["offset"], listed[3]["error"]) == (None, None, "why")


def test_a_part_is_a_webdataset_in_the_order_of_the_unit(out: str) -> None:
    record = parts.write_unit(out, 0, [_done(1, b"bb"), _done(0, b"a")], {})
    with tarfile.open(fileobj=io.BytesIO(storage.read_bytes(storage.join(out, record.tar.name)))) as tar:
        files = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert list(files) == ["k0.crdf", "k0.json", "k1.crdf", "k1.json"]
    assert (files["k0.crdf"], files["k1.crdf"]) == (b"a", b"bb")
    assert json.loads(files["k1.json"]) == {
        "key": "k1", "source": "/in/1.png", "width": 11, "height": 20, "changes": ["rotated"],
    }  # fmt: skip


def test_the_same_pictures_give_the_same_files_whatever_order_they_come_in(out: str) -> None:
    done = [_done(i, bytes([i]) * 100) for i in range(4)]
    first = parts.write_unit(storage.join(out, "1"), 0, done, {})
    second = parts.write_unit(storage.join(out, "2"), 0, done[::-1], {})
    assert (first.tar, first.parquet) == (second.tar, second.parquet)


def test_a_unit_that_is_done_twice_keeps_its_first_record_and_both_parts(out: str) -> None:
    first = parts.write_unit(out, 0, [_done(0, b"first")], {})
    second = parts.write_unit(out, 0, [_done(0, b"second")], {})
    assert second == first == compressed.read_record(out, 0)
    assert decompress_stages.read_part(out, second) == [File("k0", b"first")]
    assert len([n for n in storage.list_names(out) if n.startswith("part-")]) == 4


def test_a_unit_of_failures_alone_is_written(out: str) -> None:
    record = parts.write_unit(out, 0, [_done(0, None), _done(1, None)], {})
    assert (record.pictures, record.failures, record.bytes, record.pixels) == (2, 2, 0, 0)
    assert decompress_stages.read_part(out, record) == []


def test_there_is_no_record_before_all_files_of_the_unit(out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = storage.write_bytes

    def no_tables(uri: str, data: bytes, attempts: int = 1) -> None:
        if uri.endswith(".parquet"):
            raise JobError("full")
        original(uri, data, attempts)

    monkeypatch.setattr(storage, "write_bytes", no_tables)
    with pytest.raises(JobError, match="full"):
        parts.write_unit(out, 0, [_done(0, b"a")], {})
    assert compressed.finished_units(out) == []


# --- all of it, and back


def test_what_is_compressed_is_decoded_from_its_part(
    codec_dir: Path, codec: CorrDiffCodec, draw: Draw, tmp_path: Path
) -> None:
    pictures = [draw(16, 24, 0), draw(24, 16, 1), draw(16, 24, 2)]
    chunks = _encode(pictures, str(codec_dir))
    shown = {e.opened.key: e.shown for c in chunks for e in c.pictures}
    record = parts.write_unit(str(tmp_path), 0, _code(chunks, str(codec_dir)), {})
    files = decompress_stages.read_part(str(tmp_path), record)
    decoded = list(decompress_stages.decode(codec, files, "corrected", MAX_PIXELS))
    assert [d.key for d in decoded] == ["k/0", "k/1", "k/2"]
    assert all(metrics.psnr(d.pixels, shown[d.key]) > 50 for d in decoded)


def test_a_part_that_is_damaged_or_gone_is_named(tmp_path: Path) -> None:
    out = str(tmp_path)
    record = parts.write_unit(out, 0, [_done(0, b"abc")], {})
    part = tmp_path / record.tar.name
    part.write_bytes(part.read_bytes().replace(b"abc", b"abd"))
    with pytest.raises(JobError, match=r"part .*\.tar is damaged: its SHA-256 is not the record's"):
        decompress_stages.read_part(out, record)
    part.unlink()
    with pytest.raises(JobError, match=r"part .*\.tar is missing; copy it again"):
        decompress_stages.read_part(out, record)


def _files(codec: CorrDiffCodec, sizes: list[tuple[int, int]]) -> list[File]:
    shown = {size: codec.compress(np.zeros((*size, 3), np.uint8), steps=1) for size in set(sizes)}
    return [File(str(i), shown[size]) for i, size in enumerate(sizes)]


def test_files_of_a_part_are_cut_into_portions_by_their_pixels(
    codec: CorrDiffCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompress_stages, "CHUNK_PIXELS", 200)
    files = _files(codec, [(10, 10), (10, 10), (1, 1), (20, 20), (10, 10), (10, 10)])
    portions = list(decompress_stages.portions(files, MAX_PIXELS))
    assert [[f.key for f in portion] for portion in portions] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert [len(portion) for portion in decompress_stages.portions(files[3:], MAX_PIXELS)] == [1, 2]
    assert list(decompress_stages.portions([], MAX_PIXELS)) == []


def test_files_that_follow_each_other_and_are_alike_are_decoded_together(
    codec: CorrDiffCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decompress_stages, "BATCH", 2)
    batches: list[int] = []
    original = CorrDiffCodec.decompress_batch

    def spying(self: CorrDiffCodec, files: list[bytes], *args: Any) -> list[Picture]:
        batches.append(len(files))
        return original(self, files, *args)

    monkeypatch.setattr(CorrDiffCodec, "decompress_batch", spying)
    sizes = [(8, 8), (8, 8), (8, 8), (8, 9), (8, 8)]
    decoded = list(decompress_stages.decode(codec, _files(codec, sizes), "corrected", MAX_PIXELS))
    assert batches == [2, 1, 1, 1]
    assert [(d.key, d.pixels.shape[:2]) for d in decoded] == [(str(i), size) for i, size in enumerate(sizes)]


def test_a_file_of_another_codec_is_not_decoded(codec: CorrDiffCodec) -> None:
    (file,) = _files(codec, [(8, 8)])
    header, tiles = bitstream.unpack(file.data)
    other = bitstream.Header(**{**vars(header), "fingerprint": bytes(8)})
    with pytest.raises(bitstream.BitstreamError, match=bytes(8).hex()):
        list(decompress_stages.decode(codec, [File("a", bitstream.pack(other, tiles))], "corrected", MAX_PIXELS))


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_pictures_are_saved_in_the_format_that_was_asked_for(draw: Draw, kind: decompress_stages.Format) -> None:
    picture = draw(40, 56)
    image = Image.open(io.BytesIO(decompress_stages.to_file(picture, kind)))
    assert image.format == kind.upper()
    read = np.asarray(image.convert("RGB"))
    assert np.array_equal(read, picture) if kind != "jpeg" else metrics.psnr(read, picture) > 25


def test_a_chunk_is_saved_as_files_or_as_a_shard(draw: Draw, tmp_path: Path) -> None:
    pictures = [decompress_stages.Decoded(key, draw(8, 8, i)) for i, key in enumerate(("a", "sub/b"))]
    row = {"chunk": decompress_stages.Chunk(7, 1, 3, pictures)}
    expected = {"unit": 7, "chunks": 3, "pictures": 2}
    assert decompress_stages.save_chunk(row, str(tmp_path / "files"), "png", shards=False) == expected
    for p in pictures:
        assert np.array_equal(np.asarray(Image.open(tmp_path / "files" / f"{p.key}.png")), p.pixels)
    assert decompress_stages.save_chunk(row, str(tmp_path / "shards"), "jpeg", shards=True) == expected
    assert [p.name for p in (tmp_path / "shards").iterdir()] == ["shard-00007-001.tar"]
    with tarfile.open(tmp_path / "shards" / "shard-00007-001.tar") as tar:
        assert tar.getnames() == ["a.jpg", "sub/b.jpg"]


@pytest.mark.parametrize("key", ["../a", "a/../../b", "/etc/a", ".."])
def test_a_key_that_leads_out_of_the_directory_is_refused(draw: Draw, tmp_path: Path, key: str) -> None:
    chunk = decompress_stages.Chunk(0, 0, 1, [decompress_stages.Decoded(f"{key}/x", draw(8, 8))])
    with pytest.raises(JobError, match="no path inside a directory"):
        decompress_stages.save_chunk({"chunk": chunk}, str(tmp_path / "out"), "png", shards=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "a..b/c.png", "..a.png", "a/b/c.png"])
def test_an_ordinary_key_is_taken_as_it_is(name: str) -> None:
    assert decompress_stages._safe(name) == name


# --- bookkeeping


def _chunk(unit: int, done: list[Done], total: int | None = None, **seconds: float) -> Chunk:
    return Chunk(unit, done, total, seconds)


def test_a_unit_is_whole_when_all_its_chunks_have_come_in_any_order() -> None:
    chunks = [
        _chunk(0, [_done(0, b"a"), _done(2, b"c")], read=1.0), _chunk(0, [_done(1, b"b")], read=2.0, code=4.0),
        _chunk(0, [], total=3, read=8.0),
    ]  # fmt: skip
    for order in itertools.permutations(chunks):
        assembly = Assembly()
        *early, last = [assembly.add(chunk) for chunk in order]
        assert early == [None, None]
        assert last is not None
        assert sorted(d.place for d in last[0]) == [0, 1, 2]
        assert last[1] == {"read": 11.0, "code": 4.0}


def test_units_that_come_mixed_are_kept_apart() -> None:
    assembly = Assembly()
    assert assembly.add(_chunk(0, [_done(0, b"a")])) is None
    assert assembly.add(_chunk(1, [_done(0, b"b")])) is None
    assert assembly.add(_chunk(1, [_done(1, b"c")], total=2)) is not None
    whole = assembly.add(_chunk(0, [], total=1))
    assert whole is not None
    assert [d.data for d in whole[0]] == [b"a"]


def test_a_unit_without_pictures_is_whole_at_once() -> None:
    assert Assembly().add(_chunk(0, [], total=0)) == ([], {})


def test_what_is_done_is_counted_over_all_runs_and_the_pace_in_this_one() -> None:
    file = compressed.File("part", 1, "")
    before = Record(2, file, file, pictures=10, failures=1, bytes=500, pixels=2_000_000, seconds={"write": 9.0})
    tally = Tally(Plan({}, "", units=4, pictures=30), [before])
    assert tally.progress() == Progress(1, 4, 10, 30, 2.0, 500, 1)
    tally.add(_chunk(0, [_done(0, b"abc"), _done(1, None), _done(2, b"de")], read=1.0, encode=2.0))
    tally.add(_chunk(0, [_done(3, None)], total=4, read=0.5))
    assert (tally.pictures, tally.failures, tally.bytes) == (14, 3, 505)
    assert (tally.new_pictures, tally.new_pixels) == (4, 20 * (10 + 12))
    assert tally.first_failure == "/in/1.png: why"
    assert tally.done == {2}
    tally.write(Record(0, file, file, 4, 2, 5, 440, {"write": 0.25}))
    assert tally.done == {0, 2}
    assert tally.seconds == {"read": 1.5, "encode": 2.0, "code": 0.0, "write": 0.25}
    assert tally.progress()[:2] == (2, 4)
    assert math.isclose(tally.progress().megapixels, 2.00044)


def test_a_job_ends_when_more_pictures_have_failed_than_it_may() -> None:
    tally = Tally(Plan({}, "", units=1, pictures=None), [])
    tally.add(_chunk(0, [_done(0, b"a"), _done(1, None), _done(2, None)]))
    batch_compress._check_failures(tally, CompressConfig())
    batch_compress._check_failures(tally, CompressConfig(max_failures=2))
    with pytest.raises(JobError, match=r"2 of the first 3 pictures failed, more than --max-failures 1.*/in/1.png: why"):
        batch_compress._check_failures(tally, CompressConfig(max_failures=1))


def test_a_second_compression_of_the_same_pictures_takes_the_first_ones_plan(out: str, tmp_path: Path) -> None:
    for i in range(3):
        storage.write_bytes(str(tmp_path / "in" / f"{i}.png"), b"x")
    images = str(tmp_path / "in")
    first = batch_compress._claim(images, out, "f" * 64, CompressConfig(unit=2))
    assert (first.units, first.pictures) == (2, 3)
    storage.write_bytes(str(tmp_path / "in" / "new.png"), b"x")
    assert batch_compress._claim(images, out, "f" * 64, CompressConfig(unit=2, workers=3)) == first


def test_another_compression_is_not_mixed_with_the_one_that_is_there(out: str, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "in" / "a.png"), b"x")
    images = str(tmp_path / "in")
    batch_compress._claim(images, out, "f" * 64, CompressConfig())
    for fingerprint, config, said in (
        ("e" * 64, CompressConfig(), "codec: "), ("f" * 64, CompressConfig(quality=5), "quality: 4 there, 5 now"),
        ("f" * 64, CompressConfig(verify="pixels"), "verify: 'latents' there, 'pixels' now"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"holds another compression .*{said}"):
            batch_compress._claim(images, out, fingerprint, config)


def test_of_two_jobs_that_begin_at_once_one_plan_is_left(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(str(tmp_path / "in" / "a.png"), b"x")
    images = str(tmp_path / "in")
    original = compressed.create_plan
    plans: list[Plan] = []

    def slow(uri: str, plan: Plan) -> bool:
        if not plans:
            plans.append(plan)
            plans.append(batch_compress._claim(images, uri, "f" * 64, CompressConfig()))
        return original(uri, plan)

    monkeypatch.setattr(compressed, "create_plan", slow)
    plan = batch_compress._claim(images, out, "f" * 64, CompressConfig())
    assert plan == plans[1] != plans[0]
    assert [storage.join(compressed.PLANS, n) for n in storage.list_names(storage.join(out, "_plan"))] == [
        plan.directory
    ]


def test_nothing_to_compress_is_an_error(out: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match=r"no pictures at .*--column"):
        batch_compress._claim(str(tmp_path / "in"), out, "f" * 64, CompressConfig())
    assert compressed.read_plan(out) is None
