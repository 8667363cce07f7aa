"""What an evaluation is made of, before anything is measured."""

from __future__ import annotations

import pytest

from corrdiff.config import Settings
from corrdiff.errors import UsageError
from pipelines.evaluate import job as evaluate
from pipelines.evaluate import measure
from pipelines.evaluate.config import EvaluateConfig
from pipelines.evaluate.measure import RATES, System

ONE = EvaluateConfig(anchors=("jpeg",))


@pytest.mark.parametrize(
    ("codecs", "names"),
    [
        (("s3://bucket/runs/a/phase2/codec",), ("a/phase2",)),
        (("s3://bucket/runs/a/phase2/codec", "s3://bucket/runs/b/phase2/codec"), ("a/phase2", "b/phase2")),
        (("s3://bucket/a", "s3://bucket/b"), ("a", "b")),
        (("s3://bucket/a", "s3://bucket/a"), ("a",)),
        (("s3://bucket/a", "s3://other/a"), ("bucket/a", "other/a")),
        (("s3://bucket/a", "s3://bucket/a/codec"), ("s3://bucket/a", "s3://bucket/a/codec")),
        (("s3://bucket/jpeg",), ("bucket/jpeg",)),
        (("builtin:tiny",), ("builtin:tiny",)),
    ],
)
def test_systems_have_short_names_that_differ(codecs: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert evaluate.name_systems(codecs, ONE) == [
        *(System(name, uri) for name, uri in zip(names, dict.fromkeys(codecs), strict=True)), System("jpeg", None),
    ]  # fmt: skip


def test_points_are_every_quality_and_fidelity_and_the_other_numbers_of_steps() -> None:
    config = EvaluateConfig(qualities=(1, 4), fidelities=(1.0, 0.0), steps=(2,))
    assert config.points() == [
        Settings(1, 1.0), Settings(1, 0.0), Settings(4, 1.0), Settings(4, 0.0), Settings(4, 0.5, 2),
    ]  # fmt: skip
    assert [config.decodes_both(point) for point in config.points()] == [True, False, True, False, False]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"qualities": (9,)}, "quality must be a whole number from 0 to 7, not 9"),
        ({"qualities": ()}, "--qualities must have a value at least"),
        ({"fidelities": (1.0, 1.0)}, "--fidelities must be different values, not 1.0 1.0"),
        ({"steps": (2, 2)}, "--steps must be different values, not 2 2"),
        ({"anchors": ("jpeg", "jpeg")}, "--anchors must be different values, not jpeg jpeg"),
        ({"steps": (0,)}, "steps must be from 1 to 64, not 0"),
        ({"anchors": ("webp",)}, "--reference jpeg is not among --anchors webp"),
        ({"limit": 0}, "--limit must be at least 1, not 0"),
        ({"show": -1}, "--show must not be negative, not -1"),
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        EvaluateConfig(**options)  # type: ignore[arg-type]


def _row(bpp: float, **other: object) -> dict[str, object]:
    return {"bpp": bpp, "decoding": None, "usual_steps": True, "fidelity": None, **other}


def test_what_is_shown_is_the_nearest_rate_that_is_near_enough() -> None:
    rows = [_row(0.05), _row(0.095), _row(0.11), _row(0.3)]
    assert {rate: found["anchor"]["bpp"] for rate in RATES if (found := measure.nearest_rows(rows, rate))} == {
        0.1: 0.095, 0.4: 0.3,
    }  # fmt: skip


def test_each_way_to_decode_is_a_curve_and_other_numbers_of_steps_are_none() -> None:
    rows = [
        _row(0.1, decoding="corrected", fidelity=0.5), _row(0.1, decoding="privileged", fidelity=1.0),
        _row(0.1, decoding="corrected", fidelity=0.25, usual_steps=False),
    ]  # fmt: skip
    assert measure.nearest_rows(rows, 0.1).keys() == {"fidelity-0.5", "privileged"}
