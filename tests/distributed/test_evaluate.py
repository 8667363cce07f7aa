"""A real evaluation on the session's cluster: its table against files made by hand, its page, its run in MLflow."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from corrdiff import metrics
from corrdiff.codec import Settings
from corrdiff.codec_directory import load_codec, read_config
from pipelines.cli import main
from pipelines.tracking.tracker import EXPERIMENT
from tests.support.servers import MlflowServer

OPTIONS = [
    "--qualities", "0", "4", "7", "--fidelities", "1", "0", "--steps", "1", "8", "--anchors", "jpeg", "webp",
    "--show", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def pictures(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures that are large enough for MS-SSIM, and one that is none."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(2):
        with Image.open(photographs / f"picture_{i}.png") as image:
            image.resize((240, 176), Image.Resampling.BICUBIC).save(root / f"picture_{i}.png")
    (root / "broken.png").write_bytes(b"\x89PNG no more")
    return root


@pytest.fixture(scope="module")
def evaluated(
    ray_cluster: None, codec_dir: Path, pictures: Path, mlflow_server: MlflowServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:  # fmt: skip
    out = tmp_path_factory.mktemp("evaluated") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
        assert main(["evaluate", str(pictures), "--out", str(out), "--codec", str(codec_dir), *OPTIONS]) == 0
        yield out


def _pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_anchors_rows_are_what_their_encoders_do_by_hand(evaluated: Path, pictures: Path) -> None:
    table = pd.read_parquet(evaluated / "results.parquet")
    original = _pixels(pictures / "picture_0.png")
    jpeg = table[(table["system"] == "jpeg") & (table["picture"] == "picture_0")]
    assert len(jpeg) == 11
    for row in jpeg.itertuples():
        buffer = io.BytesIO()
        options = {"quality": int(row.quality), "optimize": True, "progressive": True}
        Image.fromarray(original).save(buffer, "JPEG", **options)
        assert row.bytes == len(buffer.getvalue())
        assert row.bpp == pytest.approx(8 * row.bytes / (176 * 240))
        decoded = np.asarray(Image.open(buffer))
        error = np.mean((decoded.astype(float) - original) ** 2)
        assert row.psnr_db == pytest.approx(10 * np.log10(255**2 / error))
    assert (jpeg.sort_values("quality")["bpp"].diff().dropna() > 0).all()


def test_the_codecs_rows_are_real_files_decoded(evaluated: Path, pictures: Path, codec_dir: Path) -> None:
    table = pd.read_parquet(evaluated / "results.parquet")
    ours = table[(table["system"] == "tiny") & (table["picture"] == "picture_1")]
    assert ours.groupby("decoding").size().to_dict() == {"corrected": 8, "privileged": 3, "uncorrected": 3}
    codec = load_codec(str(codec_dir))
    original = _pixels(pictures / "picture_1.png")
    for quality, fidelity, steps in ((4, 1.0, None), (7, 0.0, None), (4, 0.5, 1)):
        data = codec.compress_batch([original], Settings(quality, fidelity, steps))[0].data
        rows = ours[(ours["quality"] == quality) & (ours["fidelity"] == fidelity) & (ours["steps"] == (steps or 8))]
        assert set(rows["bytes"]) == {len(data)}
        for row in rows.itertuples():
            shown = codec.decompress(data, row.decoding)
            assert row.psnr_db == pytest.approx(metrics.psnr(original, shown), abs=0.01)
            assert row.high_frequency == pytest.approx(metrics.high_frequency(original, shown), rel=0.01)
    assert (ours[["encode_s_per_mpx", "decode_s_per_mpx", "encode_peak_mib", "decode_peak_mib"]] > 0).all(axis=None)
    assert ours["lpips"].isna().all()


def test_the_metrics_of_sets_are_of_every_point_of_every_curve(evaluated: Path) -> None:
    sets = pd.read_csv(evaluated / "sets.csv")
    assert sets.groupby("system").size().to_dict() == {"tiny": 3 * 4, "jpeg": 11, "webp": 10}
    assert (sets["sliced_wasserstein"] > 0).all()
    jpeg = sets[sets["system"] == "jpeg"].sort_values("quality")["sliced_wasserstein"].to_numpy()
    assert jpeg[0] > jpeg[-1]


def test_a_picture_that_is_none_is_said_and_left_out(evaluated: Path) -> None:
    table = pd.read_csv(evaluated / "results.csv")
    broken = table[table["picture"] == "broken"]
    assert set(broken["system"]) == {"tiny", "jpeg", "webp"} and broken["error"].notna().all()
    page = (evaluated / "index.html").read_text()
    assert "on 2 pictures" in page and "broken (tiny, jpeg, webp): not a picture" in page


def test_the_page_needs_nothing_else(evaluated: Path) -> None:
    page = (evaluated / "index.html").read_text()
    beyond = [part[:60] for part in page.split('"') if part.startswith(("http:", "https:", "//"))]
    assert {b for b in beyond if "www.w3.org" not in b} == set()
    for said in ("libjpeg-turbo", "libwebp", "pytorch_msssim", "PCHIP", "BD-rate", "absent: the file alexnet-"):
        assert said in page


def test_the_run_in_mlflow(evaluated: Path, codec_dir: Path, mlflow_server: MlflowServer) -> None:
    client = MlflowClient(mlflow_server.uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`corrdiff.kind` = 'evaluate'")
    (run,) = [r for r in runs if r.data.params["out"] == str(evaluated)]
    assert run.info.status == "FINISHED"
    assert run.data.tags["corrdiff.fingerprint"] == read_config(str(codec_dir))[1]
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"index.html", "results.parquet", "results.csv"}
    assert any(name.startswith("bd_rate_against_jpeg/psnr_db/") for name in run.data.metrics)


def test_the_same_command_does_what_is_missing(evaluated: Path, pictures: Path, codec_dir: Path) -> None:
    rows = sorted((evaluated / "_rows").iterdir())
    before = {row.name: row.stat().st_mtime_ns for row in rows}
    assert len(rows) == 2 * 3 and len(list((evaluated / "_failed").iterdir())) == 3
    rows[0].unlink()
    results = pd.read_parquet(evaluated / "results.parquet")
    assert main(["evaluate", str(pictures), "--out", str(evaluated), "--codec", str(codec_dir), *OPTIONS]) == 0
    after = {row.name: row.stat().st_mtime_ns for row in (evaluated / "_rows").iterdir()}
    assert {name for name in after if after[name] != before[name]} == {rows[0].name}
    again = pd.read_parquet(evaluated / "results.parquet")
    costs = [name for name in results if "_s_per_mpx" in name or "peak_mib" in name]
    pd.testing.assert_frame_equal(again.drop(columns=costs), results.drop(columns=costs))


@pytest.mark.slow
def test_a_failed_picture_is_tried_again(
    codec_dir: Path, ray_cluster: None, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "report"
    images.mkdir()
    picture = (photographs / "picture_0.png").read_bytes()
    (images / "a.png").write_bytes(picture)
    (images / "b.png").write_bytes(picture[:1000])
    (images / "notes.txt").write_bytes(b"of the day")
    command = ["evaluate", str(images), "--out", str(out), "--codec", str(codec_dir), "--anchors", "jpeg",
               "--qualities", "0", "7", "--fidelities", "1", "--steps"]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "not measured: b (tiny, jpeg)" in said and "left out: 1 .txt" in said
    assert "left out: 1 .txt" in (out / "index.html").read_text()
    (images / "b.png").write_bytes(picture)
    assert main(command) == 0
    table = pd.read_parquet(out / "results.parquet")
    assert table["error"].isna().all() and set(table["picture"]) == {"a", "b"}


def test_another_evaluation_is_refused(
    evaluated: Path, pictures: Path, codec_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(pictures), "--out", str(evaluated), "--codec", str(codec_dir), *OPTIONS]
    assert main([*command, "--limit", "1"]) == 2
    assert "limit: None there, 1 now" in capsys.readouterr().err


@pytest.mark.skipif(
    not (shutil.which("cjpeg") and shutil.which("djpeg")),
    reason="cjpeg and djpeg are not installed (Debian: apt install libjpeg-turbo-progs)",
)
@pytest.mark.slow
def test_a_command_and_what_it_decoded_are_the_anchor_again(
    ray_cluster: None, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = (2, 12, 50, 90)
    text = (
        "cjpeg -quality {q} -baseline -optimize -progressive -outfile {out} {in.bmp}; djpeg -bmp -outfile {bmp} {out}"
    )
    rows = []
    for key in ("picture_0", "picture_1"):
        for point in points:
            buffer = io.BytesIO()
            with Image.open(pictures / f"{key}.png") as image:
                image.convert("RGB").save(buffer, "JPEG", quality=point, optimize=True, progressive=True)
            (tmp_path / "folder" / str(point)).mkdir(parents=True, exist_ok=True)
            Image.open(buffer).save(tmp_path / "folder" / str(point) / f"{key}.png")
            rows.append({"key": key, "point": point, "bytes": len(buffer.getvalue())})
    pd.DataFrame(rows).to_csv(tmp_path / "folder" / "sizes.csv", index=False)
    out = tmp_path / "report"
    assert main([
        "evaluate", str(pictures), "--out", str(out), "--anchors", "jpeg", "--command", f"cjpeg={text}", "--points",
        ",".join(map(str, points)), "--reconstructions", f"folder={tmp_path / 'folder'}", "--show", "0",
    ]) == 0  # fmt: skip
    table = pd.read_parquet(out / "results.parquet").dropna(subset="quality")
    assert set(table["system"]) == {"jpeg", "cjpeg", "folder"}
    jpeg = table[(table["system"] == "jpeg") & table["quality"].isin(points)].set_index(["picture", "quality"])
    for name in ("cjpeg", "folder"):
        other = table[table["system"] == name].set_index(["picture", "quality"])
        for column in ("bytes", "psnr_db", "ssimulacra2", "texture_error"):
            pd.testing.assert_series_equal(other[column], jpeg[column].loc[other.index])
    assert "cjpeg" in capsys.readouterr().out
