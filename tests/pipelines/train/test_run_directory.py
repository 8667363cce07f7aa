"""RUN/PHASE is one run's: the first that claims it, however many come at once."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from corrdiff.errors import UsageError
from pipelines.files import storage
from pipelines.shards.format import Manifest, Shard
from pipelines.train.config import TrainConfig
from pipelines.train.phases.table import PHASES
from pipelines.train.run_directory import claim_run, has_codec, read_run

MANIFEST = Manifest(192, (Shard("shard-00000.tar", 8, 1000, "", ""),))
CONFIG = TrainConfig(shards="shards")


def test_a_run_says_what_it_is_so_that_it_can_be_read_again(tmp_path: Path) -> None:
    run = str(tmp_path / "phase1")
    assert claim_run(run, PHASES["phase1"], CONFIG, MANIFEST) == CONFIG
    record = read_run(run)
    assert (record.config, record.phase) == (CONFIG, "phase1")
    assert storage.read_json(str(tmp_path / "phase1" / "run.json")) == asdict(record)
    assert record.identity["batch"] == 16
    assert len(record.identity["shards"]) == 64


def test_a_run_goes_on_with_what_may_change_and_with_nothing_else(tmp_path: Path) -> None:
    run = str(tmp_path / "phase1")
    claim_run(run, PHASES["phase1"], CONFIG, MANIFEST)
    claim_run(run, PHASES["phase1"], TrainConfig(shards="elsewhere", workers="2"), MANIFEST)
    assert read_run(run).config == CONFIG
    with pytest.raises(UsageError) as refused:
        claim_run(run, PHASES["phase1"], TrainConfig(shards="shards", seed=5), MANIFEST)
    assert str(refused.value) == (
        f"{run} holds a different run (seed: 0 there, 5 now); choose another --name or remove it"
    )
    with pytest.raises(UsageError, match=r"holds a different run \(shards: "):
        claim_run(run, PHASES["phase1"], CONFIG, Manifest(128, MANIFEST.shards))


def test_of_jobs_that_come_at_once_one_has_the_directory_and_the_others_are_told(tmp_path: Path) -> None:
    run, jobs = str(tmp_path / "phase1"), 8
    together = threading.Barrier(jobs)
    outcomes: list[str] = []

    def claim(seed: int) -> None:
        together.wait()
        try:
            claim_run(run, PHASES["phase1"], TrainConfig(shards="shards", seed=seed), MANIFEST)
            outcomes.append(f"has it: {seed}")
        except UsageError as error:
            outcomes.append(f"told: {error}")

    threads = [threading.Thread(target=claim, args=(seed,)) for seed in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [outcome for outcome in outcomes if outcome.startswith("has it")]
    assert winner == f"has it: {read_run(run).config.seed}"
    assert sum("holds a different run" in outcome for outcome in outcomes) == jobs - 1


def test_a_phase_that_goes_on_from_a_codec_keeps_a_copy_of_it(codec_dir: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "phase2")
    config = claim_run(run, PHASES["phase2"], TrainConfig(shards="shards", init_from=str(codec_dir)), MANIFEST)
    assert config.init_from == f"{run}/init-codec"
    assert has_codec(config.init_from)
    for file in codec_dir.iterdir():
        assert (Path(config.init_from) / file.name).read_bytes() == file.read_bytes()
    assert claim_run(run, PHASES["phase2"], config, MANIFEST) == config


def test_a_phase_that_only_starts_from_a_codec_keeps_none(codec_dir: Path, tmp_path: Path) -> None:
    config = TrainConfig(shards="shards", init_from=str(codec_dir))
    assert claim_run(str(tmp_path / "phase1"), PHASES["phase1"], config, MANIFEST) == config
    assert [file.name for file in (tmp_path / "phase1").iterdir()] == ["run.json"]
