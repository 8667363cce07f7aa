"""A checkpoint becomes a codec, and what is not one, or not a run's, is one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from corrdiff.codec_directory import codec_weights, load_networks, read_config
from corrdiff.config import tiny
from corrdiff.errors import JobError, UsageError
from corrdiff.networks.model import CorrDiffModel
from pipelines.cli import main
from pipelines.files import storage
from pipelines.shards.format import Manifest, Shard
from pipelines.train import checkpoints
from pipelines.train.command import codecs_of
from pipelines.train.config import PhaseName, TrainConfig
from pipelines.train.epoch_order import Cursor
from pipelines.train.export import export
from pipelines.train.phases.table import PHASES
from pipelines.train.run_directory import claim_run

MANIFEST = Manifest(192, (Shard("shard-00000.tar", 8, 1000, "", ""),))


def write_checkpoint(run: Path, averages: dict[str, torch.Tensor], crops: int = 8) -> None:
    """One that holds nothing but averages."""
    directory = run / "checkpoints" / f"crops-{crops:012}"
    directory.mkdir(parents=True)
    data = safetensors.torch.save({f"ema/{name}": tensor for name, tensor in averages.items()})
    (directory / "part-0-of-1.safetensors").write_bytes(data)
    parts = {"part-0-of-1.safetensors": checkpoints._part_file(data)}
    marker = checkpoints.Complete(crops, 2, Cursor(1, 0), parts)
    (directory / "COMPLETE.json").write_text(json.dumps(asdict(marker)))


def started(root: Path, phase: PhaseName, init_from: Path | None = None) -> Path:
    """RUN/PHASE of a run that has just begun."""
    run = root / "run" / phase
    config = TrainConfig(shards="shards", init_from=str(init_from) if init_from else None)
    claim_run(str(run), PHASES[phase], config, MANIFEST)
    return run


def decoder_of(codec: Path) -> dict[str, torch.Tensor]:
    weights = codec_weights(load_networks(str(codec))[0])
    return {name: tensor for name, tensor in weights.items() if name.startswith("decoder.")}


@pytest.fixture
def phase1(tmp_path: Path) -> Path:
    """RUN/phase1 with a checkpoint."""
    run = started(tmp_path, "phase1")
    torch.manual_seed(1)
    model = CorrDiffModel(tiny())
    write_checkpoint(run, {f"model.{name}": tensor for name, tensor in codec_weights(model).items()})
    return run


def test_phase_1_exports_its_averages_and_the_tables_that_belong_to_them(phase1: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "codec")
    fingerprint = export(str(phase1.parent), out)
    model, _, found = load_networks(out)
    assert found == fingerprint
    averages = safetensors.torch.load_file(next(phase1.glob("checkpoints/*/*.safetensors")))
    for name, tensor in codec_weights(model).items():
        assert torch.equal(tensor, averages[f"ema/model.{name}"]), name
    assert read_config(out)[2] == {"phase1_crops": 8, "phase1_shards": "shards"}


def test_phase_2_exports_its_start_with_another_decoder_and_says_where_both_are_from(
    codec_dir: Path, tmp_path: Path
) -> None:
    run = started(tmp_path, "phase2", codec_dir)
    start, start_tables, start_fingerprint = load_networks(str(codec_dir))
    changed = {name: tensor + 1 for name, tensor in decoder_of(codec_dir).items()}
    write_checkpoint(run, changed)
    out = str(tmp_path / "codec")
    export(str(run), out)
    model, tables, _ = load_networks(out)
    for name, tensor in codec_weights(model).items():
        assert torch.equal(tensor, changed.get(name, start.get_parameter(name))), name
    assert all(torch.equal(tables.tensors[name], tensor) for name, tensor in start_tables.tensors.items())
    assert read_config(out)[2] == {
        "made_by": "the tests", "phase2_init_fingerprint": start_fingerprint, "phase2_crops": 8,
        "phase2_shards": "shards",
    }  # fmt: skip


def test_the_correction_is_a_property_of_the_codec_and_changes_no_weight(phase1: Path, tmp_path: Path) -> None:
    as_trained, paper, grid = (str(tmp_path / name) for name in ("as-trained", "paper", "grid"))
    first = export(str(phase1), as_trained)
    assert main(["export", str(phase1), paper, "--correction", "paper"]) == 0
    assert main(["export", str(phase1), grid, "--correction", "grid"]) == 0
    configs = {uri: read_config(uri) for uri in (as_trained, paper, grid)}
    assert configs[grid] == configs[as_trained]
    assert configs[as_trained][1] == first != configs[paper][1]
    diffusion = configs[paper][0].diffusion
    assert (diffusion.start, diffusion.planes, diffusion.grid, diffusion.criterion) == (0.98, 1, 0, "squared error")
    one, other = (codec_weights(load_networks(uri)[0]) for uri in (as_trained, paper))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_last_phase_that_has_a_checkpoint_is_exported(phase1: Path, codec_dir: Path, tmp_path: Path) -> None:
    run = started(tmp_path, "phase2", codec_dir)
    out = tmp_path / "codec"
    export(str(phase1.parent), str(out))
    assert "phase2_crops" not in read_config(str(out))[2]
    write_checkpoint(run, decoder_of(codec_dir))
    export(str(phase1.parent), str(out), overwrite=True)
    assert read_config(str(out))[2]["phase2_crops"] == 8


def changed_config(record: dict[str, Any]) -> None:
    record["config"]["colour"] = "blue"


def changed_type(record: dict[str, Any]) -> None:
    record["config"]["batch"] = "many"


def changed_phase(record: dict[str, Any]) -> None:
    record["phase"] = "phase9"


def changed_fields(record: dict[str, Any]) -> None:
    del record["config"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (changed_config, r"of another version \(it has a field 'colour' that is not known\)"),
        (changed_type, r"of another version \(config\.batch: .*integer\)"),
        (changed_phase, r"of another version \(phase: .*'phase1', 'phase2' or 'phase3'\)"),
        (changed_fields, r"of another version \(config: .*\)"),
    ],
    ids=["a field too many", "another type", "a phase that is not known", "a field too few"],
)
def test_a_run_of_another_version_is_one_sentence(
    change: Callable[[dict[str, Any]], None], sentence: str, phase1: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    record = storage.read_json(str(phase1 / "run.json"))
    change(record)
    (phase1 / "run.json").write_text(json.dumps(record))
    assert main(["export", str(phase1), str(tmp_path / "codec")]) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(rf"error: {phase1}/run\.json is damaged, or {sentence}\n", printed), printed


def test_checkpoints_without_the_run_that_they_are_of_are_one_sentence(
    phase1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (phase1 / "run.json").unlink()
    assert main(["export", str(phase1), str(tmp_path / "codec")]) == 2
    assert f"error: there is no {phase1}/run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mood": 1}, r"\(.*it has a field 'mood' that is not known\)\)"),
        ({"cursor": [1, 2, 3]}, r"\(.*cursor.*\)"),
        ({"parts": {"part-0-of-1.safetensors": {"bytes": 7}}}, r"\(.*sha256.*\)"),
    ],
    ids=["a field too many", "a place that is none", "a part without its hash"],
)
def test_a_marker_of_another_version_is_no_checkpoint(change: dict[str, Any], sentence: str, phase1: Path) -> None:
    (marker,) = phase1.glob("checkpoints/*/COMPLETE.json")
    marker.write_text(json.dumps(json.loads(marker.read_text()) | change))
    with pytest.raises(JobError, match=rf"COMPLETE\.json cannot be read {sentence}"):
        checkpoints.load(str(marker.parent))


def test_a_run_is_the_codecs_of_all_its_checkpoints_the_oldest_first(
    phase1: Path, codec_dir: Path, tmp_path: Path
) -> None:
    averages = safetensors.torch.load_file(next(phase1.glob("checkpoints/*/*.safetensors")))
    write_checkpoint(phase1, {name.removeprefix("ema/"): tensor for name, tensor in averages.items()}, crops=16)
    write_checkpoint(started(tmp_path, "phase2", codec_dir), decoder_of(codec_dir))
    out = tmp_path / "codecs"
    found = codecs_of(str(phase1.parent), str(out))
    names = ["phase1/crops-000000000008", "phase1/crops-000000000016", "phase2/crops-000000000008"]
    assert found == [str(out / "run" / name) for name in names]
    assert [read_config(codec)[2].get("phase1_crops") for codec in found] == [8, 16, None]
    before = (out / "run" / names[0] / "config.json").stat().st_mtime_ns
    assert codecs_of(str(phase1), str(out / "phases"))[0].endswith("phases/phase1/phase1/crops-000000000008")
    assert codecs_of(str(phase1.parent), str(out)) == found
    assert (out / "run" / names[0] / "config.json").stat().st_mtime_ns == before


def test_a_codec_is_itself_and_another_runs_codecs_are_not_taken_for_a_runs(
    phase1: Path, codec_dir: Path, tmp_path: Path
) -> None:
    assert codecs_of(str(codec_dir), str(tmp_path / "codecs")) == [str(codec_dir)]
    assert not (tmp_path / "codecs").exists()
    (tmp_path / "codecs" / "run").mkdir(parents=True)
    (tmp_path / "codecs" / "run" / "run.json").write_text(json.dumps({"identity": {"run": "/elsewhere/run"}}))
    with pytest.raises(UsageError, match="holds another run's codecs"):
        codecs_of(str(phase1.parent), str(tmp_path / "codecs"))


def test_another_codec_is_not_written_over_unless_that_is_said(
    phase1: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "codec"
    assert main(["export", str(phase1), str(out)]) == main(["export", str(phase1), str(out)]) == 0
    there = read_config(str(out))[1]
    assert main(["export", str(phase1), str(out), "--compact"]) == 2
    assert "holds another codec" in capsys.readouterr().err
    assert read_config(str(out))[1] == there
    assert main(["export", str(phase1), str(out), "--compact", "--overwrite"]) == 0
    assert read_config(str(out))[1] != there


def test_checkpoints_of_no_run_are_not_gone_on_with(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run" / "phase1", {})
    with pytest.raises(UsageError, match=r"crops-000000000008 is of no run that is known"):
        started(tmp_path, "phase1")
    assert not (tmp_path / "run" / "phase1" / "run.json").exists()
