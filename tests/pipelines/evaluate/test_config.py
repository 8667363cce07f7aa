"""What an evaluation can be asked for."""

from __future__ import annotations

import pytest

from corrdiff.config import Settings
from corrdiff.errors import UsageError
from pipelines.evaluate.config import EvaluateConfig


def test_points_are_every_quality_and_fidelity_and_the_other_numbers_of_steps() -> None:
    config = EvaluateConfig(qualities=(1, 4), fidelities=(1.0, 0.0), steps=(2,))
    assert config.settings() == [
        Settings(1, 1.0), Settings(1, 0.0), Settings(4, 1.0), Settings(4, 0.0), Settings(4, 0.5, 2),
    ]  # fmt: skip
    assert [config.decodes_both(point) for point in config.settings()] == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"qualities": (9,)}, "quality must be from 0 to 7 in steps of 1/16, not 9"),
        ({"qualities": ()}, "--qualities must have a value at least"),
        ({"fidelities": (1.0, 1.0)}, "--fidelities must be different values, not 1.0 1.0"),
        ({"steps": (2, 2)}, "--steps must be different values, not 2 2"),
        ({"anchors": ("jpeg", "jpeg")}, "--anchors must be different values, not jpeg jpeg"),
        ({"steps": (65,)}, "steps must be from 0 to 64, not 65"),
        ({"anchors": ("webp",)}, "--reference jpeg is not among webp"),
        ({"reference": "mine", "reconstructions": ("my=a",)}, "--reference mine is not among jpeg .* jxl my"),
        ({"reconstructions": ("a",)}, "--reconstructions must be NAME=..., .* not a"),
        ({"reconstructions": ("../x=a",)}, "--reconstructions must be NAME=..., .* not ../x=a"),
        ({"reconstructions": ("jpeg=a",)}, "the name jpeg is given to two systems"),
        ({"reconstructions": ("a=x", "a=y")}, "the name a is given to two systems"),
        ({"command": ("a=x",)}, "--points is given 0 times for 1 --command"),
        ({"command": ("a=x",), "points": ("1", "2")}, "--points is given 2 times for 1 --command"),
        ({"points": ("1",)}, "--points is given 1 times for 0 --command"),
        ({"command": ("a=x",), "points": ("1;2",)}, "--points 1;2 must be numbers with commas between them"),
        ({"command": ("a=x",), "points": ("1,1.0",)}, "--points 1,1.0 must be different numbers"),
        ({"command": ("a=x",), "points": ("1",), "command_limit_s": 0}, "--command-limit-s must be above 0, not 0"),
        ({"limit": 0}, "--limit must be at least 1, not 0"),
        ({"show": -1}, "--show must not be negative, not -1"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        EvaluateConfig(**options)  # type: ignore[arg-type]


def test_points_are_for_all_commands_or_one_each() -> None:
    commands = ("a=x", "b=y=z")
    assert EvaluateConfig(command=commands, points=("1,2.50",)).command_points() == [("1", "2.50")] * 2
    assert EvaluateConfig(command=commands, points=("1", "2")).command_points() == [("1",), ("2",)]
    assert EvaluateConfig(command=commands, points=("1",)).named("command") == [("a", "x"), ("b", "y=z")]
