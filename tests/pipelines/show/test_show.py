"""Looking at a compressed dataset: which rows are chosen, and what is drawn and printed of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from corrdiff import load_codec
from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import read_config
from corrdiff.errors import JobError, UsageError
from pipelines.cli import main
from pipelines.compress.chunk import Whole
from pipelines.compress.finish import _finish
from pipelines.compress.write import write_unit
from pipelines.dataset import format as compressed
from pipelines.dataset import parts, units
from pipelines.dataset.format import Plan, Stage, columns
from pipelines.dataset.index import Member, read_member
from pipelines.dataset.summary import read_complete
from pipelines.dataset.units import record_uri
from pipelines.files import storage
from pipelines.inputs.samples import Fields
from pipelines.show import choose, command
from pipelines.show.config import ShowConfig
from tests.support.compression import coded

UNITS, IN_A_UNIT = 3, 4


@pytest.fixture
def dataset(codec_dir: Path, codec: CorrDiffCodec, tmp_path: Path) -> str:
    """Three units of four pictures, of which each first one failed; psnr_db falls and bpp rises with the number, and
    the last has no PSNR. A caption travels with each."""
    uri = str(tmp_path / "compressed")
    plan = Plan({"codec": read_config(str(codec_dir))[1]}, (Stage("_plan/1", UNITS, UNITS * IN_A_UNIT),))
    compressed.claim_plan(uri, plan)
    for unit in range(UNITS):
        done = []
        for place in range(IN_A_UNIT):
            number = unit * IN_A_UNIT + place
            grey = np.full((16, 24, 3), 20 * number, np.uint8)
            data = codec.compress(grey, steps=1) if place else None
            each = coded(place, data, key=f"k{number:02d}")._replace(fields=Fields((("txt", b"a caption"),)))
            if data is not None:
                last = number == UNITS * IN_A_UNIT - 1
                each.row.update(psnr_db=None if last else 40.0 - number, bpp=0.1 * number, width=24, height=16)
            done.append(each)
        write_unit(uri, unit, Whole(done, {}, {".heic": 1}), columns())
    _finish(uri, plan)
    return uri


def _keys(rows: list[dict[str, Any]]) -> list[str]:
    return [row["key"] for row in rows]


def test_the_worst_are_those_of_the_least_psnr_or_of_the_most_bits(dataset: str) -> None:
    plan, _ = read_complete(dataset)
    assert _keys(choose.worst(dataset, plan, "psnr_db", 3)) == ["k10", "k09", "k07"]
    assert _keys(choose.worst(dataset, plan, "bpp", 3)) == ["k11", "k10", "k09"]
    assert len(choose.worst(dataset, plan, "psnr_db", 100)) == 8
    assert choose.worst(dataset, plan, "lpips", 3) == []
    with pytest.raises(UsageError, match=r"--worst must be one of bpp, psnr_db, .*, not 'beauty'"):
        choose.worst(dataset, plan, "beauty", 3)


def test_pictures_are_drawn_by_chance_once_each_and_the_same_ones_by_the_same_seed(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [f"k{i:02d}" for i in range(UNITS * IN_A_UNIT) if i % IN_A_UNIT]
    assert _keys(choose.drawn(dataset, 100, 0)) == good
    some = _keys(choose.drawn(dataset, 4, 1))
    assert some == _keys(choose.drawn(dataset, 4, 1))
    assert len(set(some)) == 4
    assert {key for seed in range(30) for key in _keys(choose.drawn(dataset, 2, seed))} == set(good)


def test_keys_come_in_the_order_in_which_they_were_given(dataset: str) -> None:
    assert _keys(choose.of_keys(dataset, ["k10", "k02", "k10"])) == ["k10", "k02"]
    with pytest.raises(UsageError, match="has no compressed picture 'k00'"):
        choose.of_keys(dataset, ["k00"])


def test_what_failed_is_listed_up_to_a_number(dataset: str) -> None:
    plan, _ = read_complete(dataset)
    rows = choose.failed(dataset, plan, 2)
    assert [(row["key"], row["error"]) for row in rows] == [("k00", "why"), ("k04", "why")]
    assert _keys(choose.failed(dataset, plan, 9)) == ["k00", "k04", "k08"]


def test_no_more_than_some_parts_are_read_at_a_time(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "TABLES_AT_ONCE", 1)
    monkeypatch.setattr(units, "AT_ONCE", 1)
    plan, _ = read_complete(dataset)
    tables = parts.read_tables(dataset, units.read_records(dataset, range(plan.units)))
    next(tables)
    for unit in (1, 2):
        storage.remove_file(record_uri(dataset, unit))
    with pytest.raises(JobError, match="is missing, which says that a unit is done"):
        next(tables)


def test_a_sheet_has_the_pictures_that_the_files_decode_to(
    dataset: str, codec_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sheet.png"
    options = ["show", dataset, "--codec", str(codec_dir), "--out", str(out), "--keys", "k10", "k01"]
    assert main(options) == 0
    printed = capsys.readouterr().out
    assert printed.index("1  k10") < printed.index("2  k01")
    assert "24x16" in printed
    assert "psnr_db 30.000" in printed
    drawn = np.asarray(Image.open(out))
    (row,) = choose.of_keys(dataset, ["k10"])
    file = read_member(dataset, Member("k10", row["part"], row["offset"], row["bytes"]))
    assert np.array_equal(drawn[4 : 4 + 16, 4 : 4 + 24], load_codec(str(codec_dir)).decompress(file))
    before = out.read_bytes()
    assert main(options) == 2
    assert f"{out} exists; give another --out, or say --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*options, "--overwrite"]) == 0
    assert main(["show", dataset, "--out", f"{out}.png"]) == 2
    assert "give the codec that wrote it" in capsys.readouterr().err


def test_a_large_picture_is_made_small_and_a_small_one_stays(codec: CorrDiffCodec) -> None:
    assert command._small(np.zeros((4000, 1000, 3), np.uint8)).shape == (320, 320, 3)
    assert command._small(np.zeros((10, 2000, 3), np.uint8)).shape[1] == 320
    assert command._small(np.zeros((16, 24, 3), np.uint8)).shape == (16, 320, 3)


def test_failures_are_printed_with_their_reasons_and_need_no_codec(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", dataset, "--failed"]) == 0
    assert "1  k00\n   /in/0.png: why" in capsys.readouterr().out
    assert not Path("contact-sheet.png").exists()


def test_the_table_of_a_compression_is_printed_again(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stats", dataset]) == 0
    printed = capsys.readouterr().out
    assert "9 pictures" in printed
    assert "psnr_db" in printed
    assert "12 files travel with them" in printed
    assert "3 files are no pictures, left out: 3 .heic" in printed
    assert "3 x why" in printed
    storage.remove_file(f"{dataset}/summary.json")
    assert main(["stats", dataset]) == 2
    assert "is not complete: 3 of 3 units are done" in capsys.readouterr().err


def test_one_way_to_choose_is_enough() -> None:
    with pytest.raises(UsageError, match="--keys, --worst, --random and --failed: give one of them"):
        ShowConfig(worst="bpp", failed=True)
    with pytest.raises(UsageError, match="--count must be at least 1, not 0"):
        ShowConfig(count=0)
    assert dataclasses.asdict(ShowConfig())["count"] == 16
