"""Small JSON files: what fits is read, what does not is one sentence, and a directory has one owner."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from corrdiff.errors import UsageError
from pipelines.files import storage
from pipelines.files.records import claim, differences, read_record, to_record


class Side(NamedTuple):
    name: str
    pixels: int


@dataclass(frozen=True)
class Inner:
    name: str
    bytes: int


@dataclass(frozen=True)
class Outer:
    number: int
    inner: Inner
    pairs: tuple[tuple[str, str], ...] = ()
    share: float | None = None


WHOLE = Outer(3, Inner("a", 10), (("x", "y"), ("z", "w")), 0.5)


def _edited(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (asdict(WHOLE) | changes).items() if value is not ...}


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(asdict(WHOLE)))
    assert read_record(str(tmp_path / "a.json"), Outer) == WHOLE
    assert to_record({"number": 3, "inner": {"name": "a", "bytes": 10}}, Outer, "u") == Outer(3, Inner("a", 10))
    assert to_record(["left", 4], Side, "u") == Side("left", 4)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (_edited(inner=...), "inner: Field required"),
        (_edited(inner={"name": "a"}), "inner.bytes: Field required"),
        (_edited(surprise=1), "it has a field 'surprise' that is not known"),
        (_edited(inner={"name": "a", "bytes": 1, "surprise": 2}), "it has a field 'surprise' that is not known"),
        (_edited(number="three"), "number: Input should be a valid integer"),
        (_edited(number="3"), "number: Input should be a valid integer"),
        (_edited(number=3.5), "number: Input should be"),
        (_edited(number=True), "number: Input should be"),
        (_edited(pairs=[["x"]]), "pairs.0.1: Field required"),
        (_edited(share="half"), "share: Input should be a valid number"),
        ([], "all of it: Input should be"),
        (None, "all of it: Input should be"),
    ],
)
def test_what_does_not_fit_is_one_sentence_that_names_the_file_and_the_field(value: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        to_record(value, Outer, "s3://bucket/a.json")
    sentence = str(caught.value)
    assert sentence.startswith("s3://bucket/a.json is damaged, or of another version (")
    assert said in sentence
    assert len(sentence.splitlines()) == 1


def test_a_file_that_is_missing_is_not_found_and_one_that_is_no_json_is_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_record(str(tmp_path / "none.json"), Outer)
    (tmp_path / "half.json").write_text('{"number": 3, "inn')
    with pytest.raises(UsageError, match=r"half\.json is damaged: not JSON"):
        read_record(str(tmp_path / "half.json"), Outer)


def _record(seed: int) -> dict[str, Any]:
    return {"identity": {"seed": seed, "sizes": (1, 2)}, "token": f"job {seed}"}


def test_the_first_claim_counts_and_the_same_job_may_come_again(tmp_path: Path) -> None:
    uri = str(tmp_path / "out" / "plan.json")
    first = claim(uri, _record(1), "/out holds another job")
    assert first == {"identity": {"seed": 1, "sizes": [1, 2]}, "token": "job 1"}  # as JSON has it
    assert claim(uri, {**_record(1), "token": "the same job later"}, "/out holds another job") == first


def test_another_job_is_refused_with_what_differs_and_what_to_do(tmp_path: Path) -> None:
    uri = str(tmp_path / "plan.json")
    claim(uri, _record(1), "")
    with pytest.raises(UsageError) as caught:
        claim(uri, _record(2), "/out holds another job")
    assert str(caught.value) == "/out holds another job (seed: 1 there, 2 now); choose another directory"
    with pytest.raises(UsageError, match=r"; remove it$"):
        claim(uri, _record(2), "/out holds another job", instead="remove it")


@pytest.mark.parametrize("there", ["[]", "{}", '{"identity": 3}'])
def test_a_claim_that_is_damaged_is_said(there: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(there)
    with pytest.raises(UsageError, match=r"plan\.json is damaged, or of another version \(it has no identity\)"):
        claim(str(tmp_path / "plan.json"), _record(1), "")


def test_of_jobs_that_claim_at_the_same_moment_exactly_one_wins(tmp_path: Path) -> None:
    jobs, rounds = 8, 20
    for number in range(rounds):
        uri = str(tmp_path / str(number) / "plan.json")
        together = threading.Barrier(jobs)

        def begin(seed: int, uri: str = uri, together: threading.Barrier = together) -> str:
            together.wait()
            try:
                return str(claim(uri, _record(seed), "/out holds another job")["token"])
            except UsageError as error:
                return str(error)

        with ThreadPoolExecutor(jobs) as pool:
            outcomes = list(pool.map(begin, range(jobs)))
        winners = [seed for seed, outcome in enumerate(outcomes) if outcome == f"job {seed}"]
        assert len(winners) == 1
        losers = [outcome for seed, outcome in enumerate(outcomes) if seed not in winners]
        assert all(f"seed: {winners[0]} there" in outcome for outcome in losers)
        assert json.loads(Path(uri).read_text())["token"] == f"job {winners[0]}"


def test_equal_jobs_that_claim_at_the_same_moment_all_go_on_with_one_record(tmp_path: Path) -> None:
    uri = str(tmp_path / "plan.json")
    together = threading.Barrier(6)

    def begin(token: int) -> Any:
        together.wait()
        return claim(uri, {"identity": {"seed": 1}, "token": token}, "/out holds another job")["token"]

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(begin, range(6)))) == 1


def test_differences_are_named_in_order_and_what_is_missing_is_said() -> None:
    assert differences({"b": 1, "a": 1}, {"b": 1, "a": 1}) == ""
    assert differences({"b": 1, "a": 1}, {"b": 2, "c": 3}) == (
        "a: 1 there, None now; b: 1 there, 2 now; c: None there, 3 now"
    )


def test_a_record_of_an_older_version_means_the_defaults_of_options_that_it_does_not_name(tmp_path: Path) -> None:
    uri, defaults = str(tmp_path / "a.json"), {"sides": (1, 2), "new": 0.0}
    claim(uri, {"identity": {"sides": (1, 2)}}, "taken")
    claim(uri, {"identity": {"sides": (1, 2), "new": 0.0}}, "taken", absent=defaults)
    with pytest.raises(UsageError, match=r"taken \(new: 0 there, 0.5 now\)"):
        claim(uri, {"identity": {"sides": (1, 2), "new": 0.5}}, "taken", absent=defaults)


def test_a_file_of_which_a_bit_is_flipped_is_an_error_or_the_same(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.json")
    for value in (asdict(WHOLE), [1, "two", {"three": [None, True, 1.5e-9]}], {"identity": {"seed": 1}, "ä": "é"}):
        storage.write_json(uri, value)
        whole, expected, same = Path(uri).read_bytes(), storage.read_json(uri), 0
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            Path(uri).write_bytes(flipped)
            try:
                found = storage.read_json(uri)
            except UsageError as error:
                assert len(str(error).splitlines()) == 1
                continue
            if isinstance(value, dict) and found.keys() - value.keys():
                continue  # the name of the checksum itself: what reads a record refuses a field that it does not know
            assert found == expected
            same += 1
        assert same < len(whole)


def test_a_record_or_a_claim_of_which_a_bit_is_flipped_is_an_error_or_the_same(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.json")

    def read() -> Any:
        return read_record(uri, Outer), claim(uri, {"identity": {}, **asdict(WHOLE)}, "taken")

    storage.write_json(uri, {"identity": {}, **asdict(WHOLE)})
    with pytest.raises(UsageError, match="'identity' that is not known"):
        read()
    for kind, value in ((Outer, asdict(WHOLE)), (None, {"identity": {"seed": 1, "names": ["a", "b"]}, "token": "t"})):
        storage.write_json(uri, value)
        whole = Path(uri).read_bytes()
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            Path(uri).write_bytes(flipped)
            try:
                found: Any = asdict(read_record(uri, kind)) if kind else claim(uri, value, "taken")
            except UsageError:
                continue
            assert json.loads(json.dumps(found)) == json.loads(json.dumps(value))
