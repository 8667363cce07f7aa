"""The Dockerfile against the rest of the project, and its commands, run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.image_build import instructions, stage_lines, targets

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def copied() -> set[str]:
    """What the image takes of the repository."""
    taken = [i.words.split()[:-1] for i in instructions() if i.name == "COPY" and "--from" not in i.words]
    return {name for names in taken for name in names}


def test_there_is_an_image_for_machines_without_and_with_gpus() -> None:
    assert targets() == {"cpu", "cuda"}


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_an_image_does_not_run_as_root_and_says_how_it_is(target: str) -> None:
    lines = stage_lines(target)
    assert [i.words for i in lines if i.name == "USER"] == ["10001"]
    assert [i.name for i in lines].index("USER") > max(n for n, i in enumerate(lines) if i.name == "RUN")
    assert sum(i.name == "HEALTHCHECK" for i in lines) == 1


def test_the_label_is_this_version_and_the_python_is_one_that_the_versions_are_for() -> None:
    (labels,) = (i.words for i in instructions() if i.name == "LABEL")
    assert f'version="{PROJECT["version"]}"' in labels
    (base,) = {i.words for i in instructions() if i.name == "FROM" and i.words.startswith("python:")}
    assert re.match(r"python:3\.1[12]-slim-", base)


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_what_is_installed_are_the_versions_of_the_constraints(target: str) -> None:
    installs = [i.words for i in stage_lines(target) if i.words.startswith("pip install")]
    assert all("--constraint constraints.txt" in words or "--no-deps" in words for words in installs)
    (extras,) = re.findall(r"'\.\[(.*)\]'", " ".join(installs))
    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_what_is_copied_is_sent_to_docker_and_nothing_else_is() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied()
    assert all((ROOT / name).exists() for name in copied())


@pytest.mark.slow
def test_the_commands_of_the_image_install_the_package(tmp_path: Path) -> None:
    """Those that need no root, in a fresh directory. Of gigabytes pip only finds out which they would be."""
    for name in copied():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / name)
    environment = tmp_path / "environment"
    variables = {
        "VIRTUAL_ENV": str(environment),
        "PATH": f"{environment}/bin:{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin",
    }
    commands = [
        i.words for stage in ("base", "code", "cuda") for i in instructions() if (i.stage, i.name) == (stage, "RUN")
    ]
    (resolving,) = (i.words for i in stage_lines("cuda") if i.name == "RUN" and "--constraint" in i.words)
    ours = [words for words in commands if words.startswith(("python", "pip"))]
    assert [words.split()[:3] for words in ours] == [
        ["python", "-m", "venv"], ["pip", "wheel", "--no-deps"], ["pip", "install", "--no-deps"],
    ]  # fmt: skip
    for words in [*ours, resolving.replace("pip install", "pip install --dry-run")]:
        done = subprocess.run(
            ["sh", "-c", words], cwd=tmp_path, env=os.environ | variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (words, done.stderr)
    assert f"corrdiff-{PROJECT['version']}" in done.stdout  # of what would be installed
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert f" ray-{pinned['ray']}" in done.stdout
    (package,) = environment.glob("lib/python*/site-packages/pipelines/cli.py")
    assert package.read_bytes() == (ROOT / "pipelines" / "cli.py").read_bytes()
