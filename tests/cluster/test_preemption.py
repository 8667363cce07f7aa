"""The watcher against a metadata service of the tests' own, which speaks as AWS's and Google Cloud's do."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import socketserver
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
    assert preemption.read_notice(said, at - 100) == Notice("stop", at)


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


@pytest.mark.parametrize(
    "said",
    [b"[" * 60_000, b'{"action": "a", "time": "0001-01-01T00:00:00+23:59"}', b'{"action": 1, "time": 5}', b"<html>"],
)
def test_an_answer_that_nobody_would_give_is_a_notice_too(said: bytes) -> None:
    notice = preemption.read_notice(said, 1000.0)
    assert notice.at <= 1000.0 + preemption.LONGEST_S
    assert notice.action.isascii()


def test_a_notice_has_a_word_and_an_end_that_can_be_passed_on() -> None:
    for action in ("a\0b", "\ud800", "tökén", "--address=evil", "x" * 10_000):
        said = json.dumps({"action": action, "time": "9999-12-31T23:59:59Z"}).encode()
        notice = preemption.read_notice(said, 1000.0)
        assert notice.at == 1000.0 + preemption.LONGEST_S
        assert len(notice.action) <= preemption.LONGEST_ACTION
        assert notice.action.isascii() and notice.action.isprintable()


@pytest.mark.parametrize(
    "token", [b"<html>\n<body>login</body></html>\n", "tökén".encode(), b"", b"t" * 65_000, b"a b"]
)
def test_a_token_that_is_none_is_asked_for_again(token: bytes) -> None:
    with pytest.raises(OSError, match="its token is none"):
        preemption.read_token(token)
    assert preemption.read_token(b"AQAEAK4t-==") == "AQAEAK4t-=="


@pytest.mark.parametrize("head", [b"HTTP/1.0 200 OK\r\nContent-Length: 60000\r\n\r\n", b"HTTP/1.0 200 OK\r\nX: "])
def test_a_service_that_sends_byte_after_byte_is_not_waited_for(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemption, "ASKING_S", 0.5)
    closed = threading.Event()

    class Trickle(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                self.request.recv(1 << 16)
                self.request.sendall(head)
                while not closed.wait(0.05):
                    self.request.sendall(b"x")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Trickle) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        metadata = Metadata(f"http://127.0.0.1:{server.server_address[1]}")
        with pytest.raises((OSError, http.client.HTTPException)):
            metadata.notice()
        closed.set()
        server.shutdown()
