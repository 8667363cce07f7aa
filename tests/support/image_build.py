"""What the Dockerfile says, instruction by instruction."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"


class Instruction(NamedTuple):
    """A line of the Dockerfile, with those that it goes on in."""

    stage: str
    name: str
    words: str


def instructions() -> list[Instruction]:
    """All of them, in order."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found, stage = [], ""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        name, _, words = line.partition(" ")
        if name == "FROM":
            stage = words.rpartition(" AS ")[2]
        if name:
            found.append(Instruction(stage, name, words))
    return found


def targets() -> set[str]:
    """The stages that nothing else is built from: the images."""
    stages = {i.stage for i in instructions()}
    used = {i.words.partition(" ")[0] for i in instructions() if i.name == "FROM"}
    copied = set(re.findall(r"--from=(\w+)", DOCKERFILE.read_text()))
    return stages - used - copied


def stage_lines(target: str) -> list[Instruction]:
    """What is done for an image, from its base on."""
    every = instructions()
    (base,) = (i.words.partition(" ")[0] for i in every if i.name == "FROM" and i.stage == target)
    own = [i for i in every if i.stage == target]
    return [*stage_lines(base), *own] if base in {i.stage for i in every} else own
