"""The whole road on object storage: shards, both phases, codec, compression and back, with a real MLflow server."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import requests
import safetensors.torch
import torch
import webdataset as wds
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from corrdiff import load_codec
from corrdiff.codec_directory import read_config
from corrdiff.metrics import psnr
from pipelines.cli import main
from pipelines.files import storage
from pipelines.tracking.tracker import EXPERIMENT
from tests.support.commands import Road, train_args
from tests.support.results import read_files, read_table
from tests.support.servers import MlflowServer


@pytest.fixture(autouse=True)
def _tracking(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)


def test_phase_2_leaves_every_weight_but_those_of_d_bit_for_bit(road: Road) -> None:
    before, after = (
        safetensors.torch.load(storage.read_bytes(f"{codec}/weights.safetensors"))
        for codec in (road.phase1, road.phase2)
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    tables = [storage.read_bytes(f"{codec}/tables.safetensors") for codec in (road.phase1, road.phase2)]
    assert tables[0] == tables[1]


def test_every_good_picture_is_in_the_table_with_real_bytes_and_every_broken_one_with_its_reason(road: Road) -> None:
    table = read_table(f"{road.root}/compressed")
    assert len(table) == 8
    good, failed = table[table.status == "ok"], table[table.status == "failed"]
    assert sorted(good.key) == [f"sub/picture_{i}" for i in range(6)]
    assert sorted(failed.key) == ["broken", "truncated"]
    assert failed.error.str.len().min() > 10
    assert failed.psnr_db.isna().all()
    files = read_files(f"{road.root}/compressed")
    for row in good.itertuples():
        assert row.bytes == len(files[row.key])
        assert row.bpp == 8 * row.bytes / (row.width * row.height)
        assert row.quality_source == "encoder replay"
    assert good.ms_ssim.isna().all()  # pictures of 160 pixels are too small for five scales
    assert good.lpips.isna().all()


def test_the_decompressed_pictures_are_what_the_codec_decodes_and_what_the_table_says(road: Road) -> None:
    codec = load_codec(road.phase2)
    files, table = read_files(f"{road.root}/compressed"), read_table(f"{road.root}/compressed").set_index("key")
    for key, data in files.items():
        decoded = np.asarray(Image.open(io.BytesIO(storage.read_bytes(f"{road.root}/back/{key}.png"))))
        assert psnr(codec.decompress(data), decoded) > 50  # threads and batches may move a pixel by one level
        original = np.asarray(Image.open(io.BytesIO(storage.read_bytes(f"{road.root}/photographs/{key}.png"))))
        assert abs(psnr(original, decoded) - table.psnr_db[key]) < 0.05


def test_webdataset_reads_the_parts_as_they_are(road: Road, tmp_path: Path) -> None:
    tars = [n for n in storage.list_names(f"{road.root}/compressed") if n.endswith(".tar")]
    for name in tars:
        (tmp_path / name).write_bytes(storage.read_bytes(f"{road.root}/compressed/{name}"))
    dataset = wds.WebDataset([str(tmp_path / n) for n in tars], shardshuffle=False)
    samples = {s["__key__"]: s for s in dataset}
    assert {key: s["crdf"] for key, s in samples.items()} == read_files(f"{road.root}/compressed")
    assert all(json.loads(s["crdf.json"])["source"].startswith(road.root) for s in samples.values())


def test_a_codec_says_which_one_it_began_with(road: Road) -> None:
    began, ended = (read_config(codec) for codec in (road.phase1, road.phase2))
    assert "phase1_init_fingerprint" not in began[2]
    assert ended[2]["phase2_init_fingerprint"] == began[1]
    assert {k: v for k, v in ended[2].items() if k.startswith("phase1")} == began[2]


def test_the_summary_adds_up(road: Road) -> None:
    summary, table = storage.read_json(f"{road.root}/compressed/summary.json"), read_table(f"{road.root}/compressed")
    good = table[table.status == "ok"]
    assert summary["pictures"] == 8
    assert summary["failures"] == 2
    assert summary["bytes"] == good.bytes.sum()
    assert summary["bpp"] == pytest.approx(8 * good.bytes.sum() / (good.width * good.height).sum())
    assert summary["percentiles"]["psnr_db"]["p50"] == pytest.approx(good.psnr_db.median())
    assert "lpips" not in summary["percentiles"]


def _runs(road: Road) -> list[Run]:
    """The road's own: the server has those of other tests too."""
    client = MlflowClient(road.mlflow)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return [r for r in runs if r.data.params.get("out", r.data.params.get("storage", "")).startswith(f"{road.root}/")]


def test_mlflow_has_a_run_for_each_step_linked_by_tags(road: Road) -> None:
    client = MlflowClient(road.mlflow)
    runs = {r.data.tags["corrdiff.kind"]: r for r in _runs(road)}
    assert runs.keys() == {"phase1", "phase2", "compress", "evaluate"}
    assert all(r.info.status == "FINISHED" for r in runs.values())
    fingerprint = storage.read_json(f"{road.phase2}/config.json")["fingerprint"]
    tags = runs["compress"].data.tags
    assert tags["corrdiff.fingerprint"] == fingerprint == runs["phase2"].data.tags["corrdiff.fingerprint"]
    assert tags["corrdiff.phase1_mlflow_run"] == runs["phase1"].info.run_id
    assert tags["corrdiff.phase2_mlflow_run"] == runs["phase2"].info.run_id
    assert runs["phase1"].data.params["zero_stage"] == "2"
    measured = runs["phase1"].data.metrics
    assert {"loss", "bpp", "psnr_decoder_db", "lr", "grad_norm", "cpu_percent"} <= measured.keys()
    assert measured["workers"] == 2
    assert measured["crops_per_s"] == pytest.approx(2 * measured["crops_per_s_per_worker"])
    assert 0 <= measured["waiting_share"] < 1
    assert measured["read_mb_per_s"] > 0
    assert measured["tflops_per_s"] > 0
    assert 0.1 < measured["peak_memory_gib"] < 20
    assert "hfu" not in measured  # there is no GPU whose peak is known
    summary = storage.read_json(f"{road.root}/compressed/summary.json")
    assert runs["compress"].data.metrics["bpp"] == pytest.approx(summary["bpp"])
    assert runs["compress"].data.metrics["psnr_db/p50"] == pytest.approx(summary["percentiles"]["psnr_db"]["p50"])
    for q in (1, 4, 7):  # real files of held-out crops, which are too small for five scales
        held_out = {k.removeprefix(f"val/q{q}/"): v for k, v in measured.items() if k.startswith(f"val/q{q}/")}
        kinds = ("", "_decoder", "_uncorrected")
        assert held_out.keys() == {"bpp"} | {f"{m}{kind}" for m in ("psnr_db", "texture_error") for kind in kinds}
        assert 0 < held_out["bpp"] < 24
    previews = client.list_artifacts(runs["phase1"].info.run_id, "previews")
    assert [a.path for a in previews] == ["previews/crops-000000000051.png"]
    local = client.download_artifacts(runs["phase1"].info.run_id, previews[0].path)
    assert np.asarray(Image.open(local)).std() > 10
    drawn_curves = client.list_artifacts(runs["phase2"].info.run_id, "curves")
    assert [a.path for a in drawn_curves] == ["curves/crops-000000000024.png"]
    names = {a.path for a in client.list_artifacts(runs["compress"].info.run_id)}
    drawn = {"histograms.png", "rate_quality.png", "worst.png"}
    assert names == drawn | {"summary.json", "failures.json"}
    for name in drawn:
        local = client.download_artifacts(runs["compress"].info.run_id, name)
        assert np.asarray(Image.open(local)).std() > 10
    failures = json.loads(Path(client.download_artifacts(runs["compress"].info.run_id, "failures.json")).read_text())
    assert sorted(f["key"] for f in failures) == ["broken", "truncated"]
    assert runs["compress"].data.params["images"] == f"{road.root}/photographs"
    assert runs["compress"].data.metrics["at_work/encode"] > 0


def test_a_finished_training_run_and_a_finished_compression_do_no_work_again(
    road: Road, capsys: pytest.CaptureFixture[str]
) -> None:
    def state() -> dict[str, bytes]:
        names = storage.list_names(f"{road.root}/compressed")
        return {n: storage.read_bytes(f"{road.root}/compressed/{n}") for n in names if "." in n}

    before = state()
    options = train_args(f"{road.root}/shards", f"{road.root}/runs", workers=1, zero_stage=3)
    assert main(["train", "phase1", *options]) == 0
    assert "is finished" in capsys.readouterr().out
    flags = ["--codec", road.phase2, "--unit", "3", "--steps", "2", "--quality", "5"]
    assert main(["compress", f"{road.root}/photographs", f"{road.root}/compressed", *flags]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert state() == before


def test_another_codec_or_setting_on_the_same_output_is_refused_with_both_named(
    road: Road, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{road.root}/compressed"
    common = [f"{road.root}/photographs", out, "--unit", "3", "--steps", "2"]
    assert main(["compress", *common, "--codec", road.phase2, "--quality", "6"]) == 2
    assert "quality: 5 there, 6 now" in capsys.readouterr().err
    assert main(["compress", *common, "--codec", road.phase1, "--quality", "5"]) == 2
    assert "codec: " in capsys.readouterr().err
    assert main(["decompress", out, f"{road.root}/elsewhere", "--codec", road.phase1]) == 2
    assert "give the codec that wrote it" in capsys.readouterr().err


@pytest.mark.slow
def test_a_lost_unit_is_done_again_with_the_same_bytes(road: Road) -> None:
    out = f"{road.root}/compressed"
    record = storage.read_json(f"{out}/_units/00001.json")
    part = storage.read_bytes(f"{out}/{record['tar']['name']}")
    fs, path = storage.open_fs(f"{out}/_units/00001.json")
    fs.rm(path)
    fs.rm(storage.open_fs(f"{out}/summary.json")[1])
    flags = ["--codec", road.phase2, "--unit", "3", "--steps", "2", "--quality", "5"]
    assert main(["compress", f"{road.root}/photographs", out, *flags]) == 0
    again = storage.read_json(f"{out}/_units/00001.json")
    assert [again[kind] for kind in ("tar", "parquet")] == [record[kind] for kind in ("tar", "parquet")]
    assert storage.read_bytes(f"{out}/{record['tar']['name']}") == part


def test_export_writes_the_same_codec_again_from_the_checkpoint(road: Road, tmp_path: Path) -> None:
    for phase, codec in (("phase1", road.phase1), ("phase2", road.phase2)):
        assert main(["export", f"{road.root}/runs/run/{phase}", str(tmp_path / phase)]) == 0
        exported = storage.read_json(f"{tmp_path}/{phase}/config.json")
        assert exported["fingerprint"] == storage.read_json(f"{codec}/config.json")["fingerprint"]


def test_a_checkpoint_reads_without_deepspeed(road: Road) -> None:
    directory = f"{road.root}/runs/run/phase1/checkpoints"
    newest = storage.list_names(directory)[-1]
    parts = [n for n in storage.list_names(f"{directory}/{newest}") if n.endswith(".safetensors")]
    assert parts == ["part-0-of-2.safetensors", "part-1-of-2.safetensors"]
    tensors: dict[str, torch.Tensor] = {}
    for part in parts:
        tensors |= safetensors.torch.load(storage.read_bytes(f"{directory}/{newest}/{part}"))
    names = {key.partition("/")[2] for key in tensors}
    weights = safetensors.torch.load(storage.read_bytes(f"{road.phase1}/weights.safetensors"))
    assert {n.removeprefix("model.") for n in names} == weights.keys() - {"entropy.prior.quantiles"}
    for name in names:
        assert torch.equal(tensors[f"ema/{name}"], weights[name.removeprefix("model.")])


def test_dry_run_says_how_many_pictures_bytes_and_hours(
    road: Road, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"{road.root}/never"
    flags = ["--codec", road.phase2, "--steps", "2", "--dry-run"]
    assert main(["compress", str(photographs), out, *flags]) == 0
    said = capsys.readouterr().out
    assert "pictures: 6" in said
    assert "hours" in said
    assert storage.list_names(out) == []


def test_a_codec_on_s3_works_in_a_process_without_ray(road: Road, photographs: Path, tmp_path: Path) -> None:
    picture, file = photographs / "picture_1.png", tmp_path / "picture.crdf"
    for arguments in (
        ["encode", str(picture), str(file), "--codec", road.phase2, "--steps", "1"],
        ["decode", str(file), str(tmp_path / "picture.png"), "--codec", road.phase2],
    ):
        subprocess.run([sys.executable, "-m", "corrdiff", *arguments], check=True)
    assert Image.open(tmp_path / "picture.png").size == (192, 160)


def test_links_lead_from_a_compression_to_its_codec_its_trainings_and_its_report(road: Road) -> None:
    runs = {r.data.tags["corrdiff.kind"]: r for r in _runs(road)}
    links = dict(re.findall(r"\[([^\]]+)\]\((#[^)]+)\)", runs["compress"].data.tags["mlflow.note.content"]))
    digest = runs["phase2"].data.tags["corrdiff.fingerprint"]
    assert {t for t in links if not t.startswith("compression: ")} == {  # another test compresses again
        "training, phase 1: run-phase1", "training, phase 2: run-phase2", "the codec's configuration after it",
        "report: evaluate", "the report's page", f"all runs of the codec {digest[:16]}",
    }  # fmt: skip

    def follow(title: str) -> tuple[str, str]:
        """What the page behind a link loads: the run that it is of, and the text of its artifact."""
        found = re.fullmatch(r"#/experiments/(\d+)/runs/(\w+)(?:/artifacts/(.+))?", links[title])
        assert found is not None
        experiment, run_id, artifact = found.groups()
        run = requests.get(f"{road.mlflow}/ajax-api/2.0/mlflow/runs/get", {"run_id": run_id}, timeout=30).json()["run"]
        assert run["info"]["experiment_id"] == experiment
        text = ""
        if artifact:
            answer = requests.get(f"{road.mlflow}/get-artifact", {"path": artifact, "run_uuid": run_id}, timeout=30)
            assert answer.status_code == 200
            text = answer.text
        return run_id, text

    for phase, title in (("phase1", "training, phase 1: run-phase1"), ("phase2", "training, phase 2: run-phase2")):
        assert follow(title)[0] == runs[phase].info.run_id
    assert follow("report: evaluate")[0] == runs["evaluate"].info.run_id
    run_id, page = follow("the report's page")
    assert run_id == runs["evaluate"].info.run_id and "<!doctype html>" in page and "JPEG" in page
    assert f"codec: `{road.phase2}`" in runs["compress"].data.tags["mlflow.note.content"]
    run_id, config = follow("the codec's configuration after it")
    assert json.loads(config)["fingerprint"] == runs["phase2"].data.tags["corrdiff.fingerprint"]
    back = runs["evaluate"].data.tags["mlflow.note.content"]
    assert f"/runs/{runs['compress'].info.run_id})" in back
