from __future__ import annotations

import itertools
import math
import re

from pipelines.compress.tally import Assembly, Tally
from pipelines.dataset.format import Plan, Stage
from pipelines.dataset.units import File, Record
from pipelines.display.progress import Progress
from tests.support.compression import chunk_of, coded


def test_a_unit_is_whole_when_all_its_chunks_have_come_in_any_order() -> None:
    chunks = [
        chunk_of(0, [coded(0, b"a"), coded(2, b"c")], read=1.0), chunk_of(0, [coded(1, b"b")], read=2.0, code=4.0),
        chunk_of(0, [], total=3, read=8.0),
    ]  # fmt: skip
    for order in itertools.permutations(chunks):
        assembly = Assembly()
        *early, last = [assembly.add(chunk) for chunk in order]
        assert early == [None, None]
        assert last is not None
        assert sorted(d.place for d in last[0]) == [0, 1, 2]
        assert last[1] == {"read": 11.0, "code": 4.0}


def test_units_that_come_mixed_are_kept_apart() -> None:
    assembly = Assembly()
    assert assembly.add(chunk_of(0, [coded(0, b"a")])) is None
    assert assembly.add(chunk_of(1, [coded(0, b"b")])) is None
    assert assembly.add(chunk_of(1, [coded(1, b"c")], total=2)) is not None
    whole = assembly.add(chunk_of(0, [], total=1))
    assert whole is not None
    assert [d.data for d in whole[0]] == [b"a"]


def test_a_unit_without_pictures_is_whole_at_once() -> None:
    assert Assembly().add(chunk_of(0, [], total=0)) == ([], {}, {})


def test_what_is_done_is_counted_over_all_runs_and_the_pace_in_this_one() -> None:
    file = File("part", 1, "")
    before = Record(2, file, file, pictures=10, failures=1, bytes=500, pixels=2_000_000, seconds={"write": 9.0})
    tally = Tally(Plan({}, (Stage("", 4, 30),)), [before])
    assert (tally.done, tally.pictures, tally.megapixels, tally.bytes, tally.failures) == ({2}, 10, 2.0, 500, 1)
    tally.add(chunk_of(0, [coded(0, b"abc"), coded(1, None), coded(2, b"de")], read=1.0, encode=2.0))
    tally.add(chunk_of(0, [coded(3, None)], total=4, read=0.5))
    assert (tally.pictures, tally.failures, tally.bytes) == (14, 3, 505)
    assert (tally.new_pictures, tally.new_pixels) == (4, 20 * (10 + 12))
    assert tally.first_failure == "/in/1.png: why"
    assert tally.done == {2}
    tally.write(Record(0, file, file, 4, 2, 5, 440, {"write": 0.25}))
    assert tally.done == {0, 2}
    assert tally.seconds == {"read": 1.5, "encode": 2.0, "code": 0.0, "write": 0.25}
    assert math.isclose(tally.megapixels, 2.00044)


def _record(unit: int, pictures: int, failures: int) -> Record:
    file = File("part", 1, "")
    return Record(unit, file, file, pictures, failures, 500_000, 2_000_000, {})


def test_a_person_sees_pictures_their_rate_the_pace_and_the_failures() -> None:
    tally = Tally(Plan({}, (Stage("", 4, 3000),)), [_record(0, 1200, 0)])
    assert tally.progress() == Progress(1200, 3000, "pictures", "2.000 bpp, 0.00 Mpx/s")
    tally = Tally(Plan({}, (Stage("", 4, 3000),)), [_record(0, 1200, 1100)])
    assert tally.progress() == Progress(1200, 3000, "pictures", "2.000 bpp, 0.00 Mpx/s, 1,100 failed")
    tally.add(chunk_of(1, [coded(0, b"ab")]))
    assert re.fullmatch(r"2\.000 bpp, \d+\.\d\d Mpx/s, 1,100 failed", tally.progress().note)
    assert Tally(Plan({}, (Stage("", 4, 3000),)), []).progress().note == "0.00 Mpx/s"


def test_where_nobody_knows_how_many_pictures_are_in_the_tars_a_person_sees_units() -> None:
    tally = Tally(Plan({}, (Stage("", 4, None),)), [_record(0, 1200, 0)])
    assert tally.progress() == Progress(1, 4, "units", "1,200 pictures, 2.000 bpp, 0.00 Mpx/s")
