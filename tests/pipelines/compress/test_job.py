from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from corrdiff import metrics
from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import read_config
from corrdiff.errors import JobError, UsageError
from corrdiff.format.bitstream import MAX_PIXELS
from pipelines.compress import job
from pipelines.compress.chunk import Whole
from pipelines.compress.claim import claim
from pipelines.compress.config import CompressConfig
from pipelines.compress.finish import _finish
from pipelines.compress.tally import Tally
from pipelines.compress.write import write_unit
from pipelines.dataset.format import Plan, Stage, columns
from pipelines.dataset.parts import read_part
from pipelines.decompress.stages import decode
from pipelines.files import storage
from tests.support.compression import chunk_of, code_chunks, coded, encode_pictures

Picture = npt.NDArray[np.uint8]
Draw = Callable[..., Picture]


def test_what_is_compressed_is_decoded_from_its_part(
    codec_dir: Path, codec: CorrDiffCodec, draw: Draw, tmp_path: Path
) -> None:
    pictures = [draw(16, 24, 0), draw(24, 16, 1), draw(16, 24, 2)]
    chunks = encode_pictures(pictures, str(codec_dir))
    shown = {e.opened.key: e.shown for c in chunks for e in c.pictures}
    record = write_unit(str(tmp_path), 0, Whole(code_chunks(chunks, str(codec_dir)), {}, {}), columns())
    files = read_part(str(tmp_path), record)
    decoded = list(decode(codec, files, "corrected", MAX_PIXELS))
    assert [d.key for d in decoded] == ["k/0", "k/1", "k/2"]
    assert all(metrics.psnr(d.pixels, shown[d.key]) > 50 for d in decoded)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (CompressConfig(quality=4.5), "quality must be a whole number for this codec"),
        (CompressConfig(steps=0, target_bpp=0.2), "steps must be at least 1 for this codec"),
    ],
)
def test_what_the_codec_s_files_cannot_say_is_refused_before_anything_is_written(
    codec_dir: Path, tmp_path: Path, config: CompressConfig, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        next(job.compress_dataset("sample:", str(tmp_path / "out"), str(codec_dir), config))
    assert not (tmp_path / "out").exists()


def test_pictures_without_steps_and_between_levels_go_through_the_stages(
    sliced_dir: Path, sliced: CorrDiffCodec, draw: Draw, tmp_path: Path
) -> None:
    config = CompressConfig(quality=3.4375, steps=0, precision="fp32", verify="pixels")
    chunks = encode_pictures([draw(16, 24, 0), draw(24, 16, 1)], str(sliced_dir), config)
    done = code_chunks(chunks, str(sliced_dir))
    assert [(d.row["status"], d.row["quality"], d.row["quality_source"]) for d in done] == [
        ("ok", 3.4375, "decoded file")
    ] * 2
    record = write_unit(str(tmp_path), 0, Whole(done, {}, {}), columns())
    decoded = list(decode(sliced, read_part(str(tmp_path), record), "corrected", MAX_PIXELS))
    shown = [e.shown for c in chunks for e in c.pictures]
    assert all(np.array_equal(d.pixels, s) for d, s in zip(decoded, shown, strict=True))


def test_a_job_ends_when_more_pictures_have_failed_than_it_may() -> None:
    tally = Tally(Plan({}, (Stage("", 1, None),)), [])
    tally.add(chunk_of(0, [coded(0, b"a"), coded(1, None), coded(2, None)]))
    job._check_failures(tally, CompressConfig())
    job._check_failures(tally, CompressConfig(max_failures=2))
    with pytest.raises(JobError, match=r"2 of the first 3 pictures failed, more than --max-failures 1.*/in/1.png: why"):
        job._check_failures(tally, CompressConfig(max_failures=1))


def test_a_compression_of_which_nothing_came_fails_again(codec_dir: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "in", str(tmp_path / "out")
    storage.write_bytes(str(images / "a.png"), b"no picture")
    plan = claim(str(images), out, read_config(str(codec_dir))[1], CompressConfig())
    write_unit(out, 0, Whole([coded(0, None)], {}, {}), columns())
    _finish(out, plan)
    with pytest.raises(JobError, match=r"not one of 1 pictures could be compressed: \{'why': 1\}"):
        next(job.compress_dataset(str(images), out, str(codec_dir), CompressConfig()))
