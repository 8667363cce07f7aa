"""Captions, labels and columns through a compression, a decompression, and a second compression, on a real Ray."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from pipelines import CompressedPictures, read_compressed
from pipelines.cli import main
from pipelines.dataset.summary import read_summary
from pipelines.dataset.units import record_uri
from pipelines.files import storage
from tests.support.drawn import make_picture
from tests.support.inputs import tar_of
from tests.support.results import read_table

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(make_picture(64, 64, seed=seed)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _samples(kind: str) -> dict[str, dict[str, bytes]]:
    """Samples of a tar or a folder: what is beside each picture, by its key."""
    return {
        f"{kind}{i}": {"txt": f"{kind} é {i}\n".encode(), "cls": str(i).encode(), "json": b'{"n":  %d}' % i}
        for i in range(3)
    }


def _parts(uri: str) -> dict[str, bytes]:
    return {n: storage.read_bytes(f"{uri}/{n}") for n in storage.list_names(uri) if n.startswith(("part-", "shard-"))}


def _webdataset(place: Path, parts: dict[str, bytes], picture: str) -> dict[str, dict[str, Any]]:
    """The name of each sample -> its members, as webdataset reads the tars; those of failures, too."""
    place.mkdir()
    for name, data in parts.items():
        (place / name).write_bytes(data)
    tars = sorted(str(p) for p in place.glob("*.tar"))
    ours = {"__key__", "__url__", "__local_path__", picture, "crdf.json"}
    return {
        sample["__key__"].rpartition("/")[2].partition("=2E")[0]: {k: v for k, v in sample.items() if k not in ours}
        for sample in wds.WebDataset(tars, shardshuffle=False)
    }


class Mixed(NamedTuple):
    """A compression of a tar and a folder."""

    root: str
    """URI; out/ is the compression."""
    command: list[str]
    parts: dict[str, bytes]
    good: dict[str, dict[str, Any]]
    """What travelled with the pictures that are no failures."""


def _mixed(root: str, common: list[str], place: Path) -> Mixed:
    """Compress three samples in a tar, one of them broken and one more without a picture, and three in a folder."""
    of_tar, of_folder = _samples("t"), _samples("f")
    members = [
        (f"{key}.{ending}", data)
        for i, (key, beside) in enumerate(of_tar.items())
        for ending, data in {"jpg": _jpeg(i) if i < 2 else b"broken", **beside, "seg.png": b"mask"}.items()
    ]
    storage.write_bytes(f"{root}/in/s.tar", tar_of([*members, ("t9.txt", b"alone")]))
    for i, (key, beside) in enumerate(of_folder.items()):
        for ending, data in {"jpg": _jpeg(i + 5), **beside}.items():
            storage.write_bytes(f"{root}/in/{key}.{ending}", data)
    storage.write_bytes(f"{root}/in/notes.txt", b"nobody's")
    command = ["compress", f"{root}/in", f"{root}/out", *common, "--picture", "jpg"]
    assert main(command) == 0
    with_masks = {key: beside | {"seg.png": b"mask"} for key, beside in of_tar.items()}
    good = of_folder | {key: with_masks[key] for key in ("t0", "t1")}
    parts = _parts(f"{root}/out")
    assert _webdataset(place, parts, "crdf") == of_folder | with_masks | {"t9": {"txt": b"alone"}}
    return Mixed(root, command, parts, good)


def test_what_is_beside_pictures_in_tars_and_folders_comes_through_byte_for_byte(
    s3: str, common: list[str], codec_dir: Path, tmp_path: Path, tracking: str
) -> None:
    mixed = _mixed(f"{s3}/travelling", common, tmp_path / "parts")
    out = f"{mixed.root}/out"
    rows = read_table(out).set_index("key")
    assert rows.error.dropna().to_dict() == {
        "s.tar/t2": rows.error["s.tar/t2"], "s.tar/t9": "the sample has no .jpg",
    }  # fmt: skip
    assert "not a picture" in rows.error["s.tar/t2"]
    summary = read_summary(out)
    assert summary is not None
    files = 3 * 4 + 3 * 5 + 1 + 1
    assert (summary.pictures, summary.failures, summary.left_out) == (7, 2, {".txt": 1})
    assert 6 + summary.members + sum(summary.left_out.values()) == files  # six pictures are files; t9 has none
    read = {key: beside for key, _, beside in CompressedPictures(out, str(codec_dir), fields=True)}
    assert {key.rpartition("/")[2]: beside for key, beside in read.items()} == mixed.good


@pytest.mark.slow
def test_what_travels_is_the_same_after_a_resume_and_through_shards_and_back(
    s3: str, common: list[str], codec_dir: Path, tmp_path: Path, tracking: str
) -> None:
    root, command, parts, good = _mixed(f"{s3}/travelling-again", common, tmp_path / "parts")
    storage.remove_file(f"{root}/out/summary.json")
    storage.remove_file(record_uri(f"{root}/out", 1))
    for name in parts:
        if name.startswith("part-00001-"):
            storage.remove_file(f"{root}/out/{name}")
    assert main(command) == 0
    assert _parts(f"{root}/out") == parts

    back = ["decompress", f"{root}/out", f"{root}/back", "--codec", str(codec_dir), "--shards", "--format", "jpeg"]
    assert main(back) == 0
    assert _webdataset(tmp_path / "shards", _parts(f"{root}/back"), "jpg") == good
    assert main(["compress", f"{root}/back", f"{root}/again", *common, "--picture", "jpg"]) == 0
    assert _webdataset(tmp_path / "again", _parts(f"{root}/again"), "crdf") == good


@pytest.mark.slow
def test_the_columns_of_a_table_come_through_with_their_values(
    common: list[str], codec_dir: Path, tmp_path: Path, tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [{"bytes": _jpeg(i) if i != 2 else b"", "path": f"{i}.jpg"} for i in range(5)]
    table = pa.table({
        "image": pa.array(pictures, PICTURE),
        "text": ["one", "zwei", "trois", None, "пять"],
        "width": pa.array([10, 20, 30, 40, None], pa.int64()),
        "tags": pa.array([["a"], [], None, ["b", "c"], ["d"]], pa.list_(pa.string())),
        "meta": pa.array([{"id": i, "at": [0.5, float(i)]} for i in range(5)]),
    })  # fmt: skip
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "t.parquet", row_group_size=3)

    def compress(images: str, out: str, *more: str) -> int:
        return main(["compress", f"{tmp_path}/{images}", f"{tmp_path}/{out}", *common, "--column", "image", *more])

    def check(out: str, rows: list[int]) -> None:
        """The columns of some rows, as pandas and DuckDB read them."""
        expected = [table.slice(i, 1).to_pylist()[0] for i in rows]
        frame = pd.concat(
            pd.read_parquet(p, dtype_backend="pyarrow") for p in sorted(tmp_path.glob(f"{out}/part-*.parquet"))
        )
        assert [*frame.text.fillna("-")] == [e["text"] or "-" for e in expected]
        assert [*frame.original_width.fillna(-1)] == [-1 if e["width"] is None else e["width"] for e in expected]
        query = (
            f"select text, original_width, tags, meta, image.path from '{tmp_path}/{out}/part-*.parquet' order by key"
        )
        assert duckdb.sql(query).fetchall() == [
            (e["text"], e["width"], e["tags"], e["meta"], e["image"]["path"]) for e in expected
        ]
        kinds = duckdb.sql(query).types
        assert [str(kind) for kind in kinds[:3]] == ["VARCHAR", "BIGINT", "VARCHAR[]"]

    assert compress("in", "out") == 0
    check("out", [0, 1, 2, 3, 4])
    frame = read_table(f"{tmp_path}/out")
    assert list(frame.status) == ["ok", "ok", "failed", "ok", "ok"]
    rows = read_compressed(f"{tmp_path}/out", str(codec_dir), fields=True).take_all()
    assert {row["text"] for row in rows} == {"one", "zwei", None, "пять"}

    back = ["decompress", f"{tmp_path}/out", f"{tmp_path}/back", "--codec", str(codec_dir), "--shards"]
    assert main(back) == 0
    shards = pa.concat_tables(pq.read_table(p) for p in sorted((tmp_path / "back").glob("shard-*.parquet")))
    assert shards.schema.names == table.schema.names
    assert shards.drop_columns(["image"]).to_pylist() == table.take([0, 1, 3, 4]).drop_columns(["image"]).to_pylist()
    assert Image.open(io.BytesIO(shards["image"][0]["bytes"].as_py())).size == (64, 64)
    assert compress("back", "again") == 0
    check("again", [0, 1, 3, 4])

    capsys.readouterr()
    assert compress("in", "out", "--columns", "text") == 2
    assert "columns: ['all'] there, ['text'] now" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "plan.json").read_bytes())["identity"]["columns"] == ["all"]
