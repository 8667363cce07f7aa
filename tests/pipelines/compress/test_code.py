from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from corrdiff import coding, metrics
from corrdiff.codec import CorrDiffCodec, Pending
from pipelines.compress.chunk import Chunk, Opened
from pipelines.compress.code import Coder
from pipelines.compress.encode import Encoder
from pipelines.dataset.format import columns
from tests.support.compression import QUICK, code_chunks, encode_pictures

Picture = npt.NDArray[np.uint8]
Draw = Callable[..., Picture]


def test_failures_pass_through_all_stages(codec_dir: Path) -> None:
    chunk = Chunk(0, [Opened(0, "a", "a.png", None, error="there is no such file")], 1, {})
    chunk = Encoder(str(codec_dir), QUICK, "cpu")({"chunk": chunk})["chunk"]
    chunk = Coder(str(codec_dir), None)({"chunk": chunk})["chunk"]
    (done,) = chunk.pictures
    assert (chunk.total, done.data, done.row["key"], done.row["source"]) == (1, None, "a", "a.png")
    assert (done.row["status"], done.row["error"]) == ("failed", "there is no such file")
    assert set(done.row) == set(columns().names)


def test_each_stage_says_what_it_took(codec_dir: Path, draw: Draw) -> None:
    (chunk, last) = encode_pictures([draw(16, 16)], str(codec_dir))
    chunk = Coder(str(codec_dir), None)({"chunk": chunk})["chunk"]
    assert set(chunk.seconds) == {"read", "encode", "code"}
    assert all(s > 0 for s in chunk.seconds.values())
    assert set(last.seconds) == {"read", "encode"}


def test_a_row_describes_its_file(codec_dir: Path, codec: CorrDiffCodec, draw: Draw) -> None:
    picture = draw(16, 24)
    (done,) = code_chunks(encode_pictures([picture], str(codec_dir)), str(codec_dir))
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
    chunks = encode_pictures([draw(16, 16)], str(codec_dir))
    exact = [c._replace(pictures=[e._replace(shown=e.opened.pixels) for e in c.pictures]) for c in chunks]
    (done,) = code_chunks(exact, str(codec_dir))
    assert (done.row["status"], done.row["psnr_db"]) == ("ok", None)


def test_a_file_that_says_something_else_is_a_failure(
    codec_dir: Path, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = encode_pictures([draw(16, 16, 0), draw(16, 16, 1)], str(codec_dir))
    original, written = coding.write, []

    def damaged_once(pending: Pending, tables: Any) -> bytes:
        data = original(pending, tables)
        written.append(data)
        return data[:20] + bytes([data[20] ^ 1]) + data[21:] if len(written) == 1 else data

    monkeypatch.setattr(coding, "write", damaged_once)
    bad, good = code_chunks(chunks, str(codec_dir))
    assert (bad.data, bad.row["status"]) == (None, "failed")
    assert bad.row["error"].startswith("verification: ")
    assert (good.data, good.row["status"]) == (written[1], "ok")


def test_latents_that_the_file_does_not_decode_to_are_a_failure(codec_dir: Path, draw: Draw) -> None:
    (chunk, *_) = encode_pictures([draw(16, 16)], str(codec_dir))
    (encoded,) = chunk.pictures
    symbols = encoded.pending.symbols[0]
    other = symbols._replace(y_hat_Mhw=symbols.y_hat_Mhw + 1)
    changed = encoded._replace(pending=encoded.pending._replace(symbols=[other]))
    (done,) = code_chunks([chunk._replace(pictures=[changed])], str(codec_dir))
    assert (done.data, done.row["error"]) == (None, "verification: the latents of tile 0 decode to something else")
