"""The watcher against a metadata service of the tests' own, which speaks as AWS's and Google Cloud's do."""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Iterator

import pytest

from cluster import preemption
from cluster.preemption import GoogleMetadata, Metadata, Notice, Watch
from corrdiff.errors import JobError
from tests.support.metadata_server import MetadataServer


@pytest.fixture
def service() -> Iterator[MetadataServer]:
    with MetadataServer() as server:
        yield server


def test_there_is_no_notice_until_there_is_one_and_a_token_is_asked_for_first(service: MetadataServer) -> None:
    metadata = Metadata(service.url)
    assert metadata.notice() is None
    service.give_notice(90)
    notice = metadata.notice()
    assert notice is not None
    assert notice.action == "terminate"
    assert notice.at - time.time() == pytest.approx(90, abs=2)
    assert service.tokens_given == 1
    assert service.refused == 0


def test_a_token_that_is_no_longer_valid_is_renewed(service: MetadataServer) -> None:
    metadata = Metadata(service.url)
    assert metadata.notice() is None
    service.forget_tokens()
    with pytest.raises(OSError, match="401"):
        metadata.notice()
    assert metadata.notice() is None
    assert service.tokens_given == 2


@pytest.mark.parametrize("said", [b"", b"{}", b"not json", b'{"action": "stop", "time": "soon"}', b"[1]", b"null"])
def test_an_answer_that_cannot_be_read_is_a_notice_with_two_minutes(said: bytes) -> None:
    assert preemption.read_notice(said, 1000.0) == Notice("unknown", 1120.0)


def test_the_time_of_a_notice_is_read() -> None:
    said = json.dumps({"action": "stop", "time": "2026-01-31T08:22:00Z"}).encode()
    at = datetime.datetime(2026, 1, 31, 8, 22, tzinfo=datetime.UTC).timestamp()
    assert preemption.read_notice(said, 0.0) == Notice("stop", at)


def test_google_cloud_says_that_a_machine_goes_half_a_minute_ahead(service: MetadataServer) -> None:
    metadata = GoogleMetadata(service.url)
    assert metadata.notice() is None
    service.preempted = b"TRUE\n"
    notice = metadata.notice()
    assert notice is not None
    assert notice.action == "preempted"
    assert notice.at - time.time() == pytest.approx(30, abs=2)


@pytest.mark.parametrize("said", [b"", b"<html>Sign in</html>", b"true", b"\xff"])
def test_what_google_cloud_never_says_is_no_notice_and_no_silence(service: MetadataServer, said: bytes) -> None:
    service.preempted = said
    with pytest.raises(OSError, match="it said"):
        GoogleMetadata(service.url).notice()


def test_the_watcher_asks_the_service_of_its_cloud(service: MetadataServer, monkeypatch: pytest.MonkeyPatch) -> None:
    drained: list[tuple[str, str, Notice]] = []
    monkeypatch.setattr(preemption, "drain", lambda *call: drained.append(call))
    service.preempted = b"TRUE"
    assert preemption.watch(Watch("127.0.0.1:1", "ab" * 28, "gcp", service.url, every=0.02)) == 0
    assert [notice.action for _, _, notice in drained] == ["preempted"]
    assert service.tokens_given == 0


def test_a_service_that_goes_away_is_waited_for(
    service: MetadataServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drained: list[tuple[str, str, Notice]] = []
    monkeypatch.setattr(preemption, "drain", lambda *call: drained.append(call))
    service.broken = True
    options = Watch("127.0.0.1:1", "ab" * 28, "aws", service.url, every=0.02)
    watching = threading.Thread(target=preemption.watch, args=(options,))
    watching.start()
    time.sleep(0.2)
    service.give_notice(60)
    service.broken = False
    watching.join(10)
    assert not watching.is_alive()
    ((address, node, notice),) = drained
    assert (address, node) == ("127.0.0.1:1", "ab" * 28)
    assert notice.at - time.time() == pytest.approx(60, abs=3)
    said = capsys.readouterr().out
    assert said.count("does not answer") == 1
    assert "answers again" in said


def test_a_drain_that_is_not_accepted_is_tried_again_until_the_time_is_up(
    service: MetadataServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = 0

    def refused(*_: object) -> None:
        nonlocal tried
        tried += 1
        raise JobError("Ray is not there")

    monkeypatch.setattr(preemption, "drain", refused)
    service.give_notice(1.5)
    with pytest.raises(JobError, match="Ray is not there"):
        preemption.watch(Watch("127.0.0.1:1", "ab" * 28, "aws", service.url, every=0.1))
    assert tried >= 3
