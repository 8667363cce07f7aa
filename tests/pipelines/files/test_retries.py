from __future__ import annotations

import pytest

from corrdiff.errors import JobError, UsageError
from pipelines.files import retries


def test_a_passing_error_is_tried_again_and_a_lasting_one_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_DELAY_S", 0.0)
    calls = []

    def fails_twice() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise OSError("503 SlowDown")
        return "done"

    assert retries.with_retries("reading x", fails_twice) == "done"

    def always() -> None:
        raise TimeoutError("no answer")

    with pytest.raises(JobError, match="reading x failed 5 times, last with: no answer"):
        retries.with_retries("reading x", always)


def test_what_a_long_job_waits_for_is_said_once_and_waited_for_some_minutes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", pauses.append)

    def always() -> None:
        raise OSError("503 SlowDown")

    with pytest.raises(JobError, match="reading x failed 30 times"):
        retries.with_retries("reading x", always, retries.PATIENT_ATTEMPTS)
    assert capsys.readouterr().err == "reading x fails (503 SlowDown); trying again for some minutes\n"
    assert 120 < sum(pauses) < 360


def test_a_refused_permission_is_final_at_once() -> None:
    calls = []

    def refused() -> None:
        calls.append(1)
        raise PermissionError(13, "Permission denied")

    with pytest.raises(UsageError, match=r"reading x is not permitted .*check the path and the credentials"):
        retries.with_retries("reading x", refused)
    assert len(calls) == 1


def test_google_clouds_refusal_is_final_at_once() -> None:
    calls = []

    def refused() -> None:
        calls.append(1)
        raise OSError("Forbidden: https://storage.googleapis.com/o\nworker has no storage.objects.get access")

    with pytest.raises(UsageError, match=r"reading x is not permitted \(worker has no storage.objects.get access\)"):
        retries.with_retries("reading x", refused)
    assert len(calls) == 1
