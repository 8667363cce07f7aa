"""Records of units and bundles of them: whoever dies, or does the same beside, each record is there all the time."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corrdiff.errors import JobError, UsageError
from pipelines.dataset import units
from pipelines.dataset.units import File, Record, bundle_records, create_record, finished_units, read_records
from pipelines.files import storage

SIZES, GROUP = (1, 4, 16), 2


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "SIZES", SIZES)
    monkeypatch.setattr(units, "GROUP_UNITS", GROUP)
    monkeypatch.setattr(units, "AT_ONCE", 7)


def _record(unit: int, pictures: int = 64) -> Record:
    files = (File(f"part-{unit:05d}-{'a' * 12}.{end}", 10, f"{unit:064d}") for end in ("tar", "parquet"))
    return Record(unit, *files, pictures, 1, 900, 4096, {"read": 0.5}, {".json": unit}, 2)


def _names(place: str) -> list[str]:
    return storage.list_names(storage.join(place, units.UNITS))


def test_records_of_many_units_are_in_few_files_and_read_as_they_were(place: str) -> None:
    for unit in range(39):
        create_record(place, _record(unit))
    create_record(place, _record(47))
    bundle_records(place)
    assert _names(place) == [
        "00000-00015.parquet", "00016-00031.parquet", "00032-00035.parquet", "00036.json", "00037.json", "00038.json",
        "00047.json",
    ]  # fmt: skip
    assert finished_units(place) == [*range(39), 47]
    asked = [47, 3, 38, 3, 16, *range(31, 5, -1)]
    assert list(read_records(place, asked)) == [_record(unit) for unit in asked]
    bundle_records(place)
    assert len(_names(place)) == 7


def test_what_comes_after_a_bundle_does_not_count(place: str) -> None:
    for unit in range(4):
        create_record(place, _record(unit))
    bundle_records(place)
    assert create_record(place, _record(2, pictures=1)) == _record(2)
    assert _names(place) == ["00000-00003.parquet"]


def test_a_reader_whose_records_are_bundled_under_its_hands_reads_them(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unit in range(16):
        create_record(place, _record(unit))
    listed = units._files(place)
    bundle_records(place)
    lists = iter([listed])
    real = units._files
    monkeypatch.setattr(units, "_files", lambda uri: next(lists, None) or real(uri))
    assert list(read_records(place, range(16))) == [_record(unit) for unit in range(16)]


def test_a_record_that_is_nowhere_is_named(place: str) -> None:
    create_record(place, _record(0))
    with pytest.raises(JobError, match=r"_units/00001\.json is missing, which says that a unit is done"):
        list(read_records(place, [0, 1]))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 12))
def test_records_are_there_at_any_moment_of_any_sequence(seed: int, steps: int) -> None:
    draw = random.Random(seed)
    written: dict[int, Record] = {}

    def check(place: str) -> None:
        assert finished_units(place) == sorted(written)
        assert list(read_records(place, sorted(written))) == [written[u] for u in sorted(written)]

    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        for step in range(steps):
            if draw.random() < 0.6:
                for unit in draw.sample(range(40), draw.randrange(1, 20)):
                    counts = create_record(place, _record(unit, pictures=step))
                    assert counts == written.setdefault(unit, counts)
            else:
                with patch.context() as faulty:
                    _die_at(faulty, draw.randrange(30))
                    with contextlib.suppress(_DiedError):
                        bundle_records(place)
            check(place)
        bundle_records(place)
        check(place)


class _DiedError(BaseException):
    pass


def _die_at(patch: pytest.MonkeyPatch, count: int) -> None:
    """Let a process die before its so manieth change of storage."""
    left = [count]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise _DiedError
            return real(*arguments)

        return change

    for name in ("create_bytes", "remove_file"):
        patch.setattr(storage, name, counted(getattr(storage, name)))


def test_a_flipped_bit_of_a_bundle_is_an_error_or_nothing(place: str) -> None:
    for unit in range(4):
        create_record(place, _record(unit))
    bundle_records(place)
    (name,) = _names(place)
    uri = storage.join(place, units.UNITS, name)
    data = storage.read_bytes(uri)
    draw, refused = random.Random(0), 0
    for bit in draw.sample(range(8 * len(data)), 300):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        storage.write_bytes(uri, bytes(flipped))
        try:
            assert list(read_records(place, range(4))) == [_record(unit) for unit in range(4)]
        except (JobError, UsageError):
            refused += 1
    assert refused > 30  # much of a footer is read by nobody


def test_records_in_each_others_places_are_refused(place: str) -> None:
    for unit in range(8):
        create_record(place, _record(unit))
    bundle_records(place)
    first, second = (storage.join(place, units.UNITS, name) for name in _names(place))
    storage.write_bytes(second, storage.read_bytes(first))
    with pytest.raises(UsageError, match="is damaged: it has unit 0 in the place of 4"):
        list(read_records(place, range(8)))


def test_older_records_are_read(place: str) -> None:
    value = dataclasses.asdict(_record(0))
    for name in ("left_out", "members"):
        del value[name]
    storage.write_json(units.record_uri(place, 0), value)
    assert next(read_records(place, [0])).members == 0
