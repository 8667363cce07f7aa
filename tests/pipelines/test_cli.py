"""The command line: help that teaches, and clear errors instead of tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.cli import main

COMMANDS = (
    ["demo"], ["shard"], ["train"], ["train", "phase1"], ["train", "phase2"], ["train", "phase3"],
    ["train", "all"], ["export"], ["encode"],
    ["decode"], ["inspect"], ["compress"], ["decompress"], ["evaluate"],
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Example: corrdiff {command[0]}" in said


def test_no_argument_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(command[0] in said for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("corrdiff 0.")


def test_without_the_cluster_part_a_command_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['{0}'] = None; from pipelines.cli import main; sys.exit(main(['{1}', 'x']))"
    for package, command in (("pyarrow", "evaluate"), ("ray", "preflight")):
        run = [sys.executable, "-c", code.format(package, command)]
        done = subprocess.run(run, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: this command needs {package}, ")
        assert 'pip install "corrdiff[cluster]"' in done.stderr


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\nfrom pipelines.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('ray', 'deepspeed', 'mlflow', 'compressai') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


TRAIN = ["train", "phase1", "--shards", "{tmp}/none"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shard", "{tmp}/none", "{tmp}/out"], "no pictures at"),
        (["shard", "sample:nobody", "{tmp}/out"], "there is no sample 'nobody'"),
        (["shard", "sample:", "{tmp}/out", "--crop", "3"], "--crop must be from 16"),
        (["shard", "nothing://x", "{tmp}/out"], "cannot open nothing://x"),
        (TRAIN, "there is no manifest.json"),
        (["train", "phase1", "--shards", "{tmp}/shard-{0..9}.tar"], "name the one directory of corrdiff shards"),
        ([*TRAIN, "--batch", "3", "--workers", "2"], "dealt"),
        ([*TRAIN, "--zero-stage", "7"], "zero-stage"),
        ([*TRAIN, "--preset", "huge"], "preset"),
        (["train", "phase2", "--shards", "{tmp}/none", "--storage", "{tmp}"], "needs a finished phase 1"),
        (["train", "phase3", "--shards", "{tmp}/none", "--storage", "{tmp}"], "needs a finished phase 2"),
        (["export", "{tmp}/none", "{tmp}/out"], "no finished checkpoint"),
        (["compress", "sample:", "{tmp}/out", "--codec", "{tmp}/none"], "no codec at"),
        (["compress", "sample:", "{tmp}/out", "--codec", "{tmp}/none", "--quality", "9"], "quality"),
        (["decompress", "{tmp}/none", "{tmp}/out", "--codec", "{tmp}/none"], "no compressed dataset at"),
        (["fly"], "fly"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_what_a_user_gets_wrong_is_one_clear_sentence_and_exit_code_2(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    command = [part.replace("{tmp}", str(tmp_path)) for part in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *command], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
