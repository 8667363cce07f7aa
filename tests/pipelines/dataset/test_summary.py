from __future__ import annotations

import dataclasses

import pytest

from corrdiff.errors import UsageError
from pipelines.dataset import format as compressed
from pipelines.dataset.format import SUMMARY, Plan, Stage
from pipelines.dataset.summary import Summary, read_complete, read_summary
from pipelines.dataset.units import File, Record, create_record
from pipelines.files import storage

PLANNED = Plan({"codec": "a" * 64}, (Stage("_plan/1", 3, 10),))
FINISHED = Summary(
    pictures=10, failures=1, bytes=900, pixels=9000, bpp=0.8, percentiles={"bpp": {"mean": 0.8, "p5": 0.7}},
    failure_reasons={"the file is empty": 1}, qualities={"4": 9}, codec_fingerprint="a" * 64,
)  # fmt: skip


def test_a_dataset_is_complete_when_it_has_a_summary(place: str) -> None:
    with pytest.raises(UsageError, match=r"no compressed dataset at .*: there is no plan\.json"):
        read_complete(place)
    compressed.claim_plan(place, PLANNED)
    file = File("part", 1, "")
    create_record(place, Record(1, file, file, 4, 1, 300, 4096, {"read": 0.5}))
    assert read_summary(place) is None
    with pytest.raises(UsageError, match="is not complete: 1 of 3 units are done; run 'corrdiff compress' again"):
        read_complete(place)
    storage.write_json(storage.join(place, SUMMARY), dataclasses.asdict(FINISHED))
    assert read_complete(place) == (PLANNED, FINISHED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pictures": None}, "pictures"), ({"surprise": 1}, "surprise"), ({"bpp": "much"}, "bpp"),
        ({"percentiles": {"bpp": 1}}, "percentiles.bpp"),
    ],
)  # fmt: skip
def test_a_summary_that_is_none_is_refused(place: str, change: dict[str, object], message: str) -> None:
    storage.write_json(storage.join(place, SUMMARY), dataclasses.asdict(FINISHED) | change)
    with pytest.raises(UsageError, match=rf"summary\.json is damaged, or of another version .*{message}"):
        read_summary(place)


def test_a_summary_of_failures_alone_is_read_back(place: str) -> None:
    nothing = dataclasses.replace(FINISHED, failures=10, bytes=0, pixels=0, bpp=None, percentiles={}, qualities={})
    storage.write_json(storage.join(place, SUMMARY), dataclasses.asdict(nothing))
    assert read_summary(place) == nothing
