"""Connecting to Ray, and what its errors come out as."""

from __future__ import annotations

import pytest
import ray
import ray.exceptions

from corrdiff.errors import JobError, UsageError
from pipelines.runtime.session import ray_errors, ray_session


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (
            "Failed to connect to GCS. Last connection error: Traceback ...\n"
            "ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing",
            "RPC error: InvalidAuthToken: Authentication token is missing",
        ),
        ("", "Failed to connect to Ray cluster at 10.0.0.1:6379"),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_a_sentence(cause: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from RuntimeError(cause)

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UsageError) as caught, ray_session():
        raise AssertionError
    assert str(caught.value) == f"RAY_ADDRESS is 10.0.0.1:6379: {said}"


TASK = """ray::Map(_cut)() (pid=12, ip=10.0.0.1)
  File "/code/pipelines/shards/job.py", line 90, in _cut
    raise Refused
"""


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        (f"{TASK}corrdiff.errors.UsageError: choose another directory", UsageError, "choose another directory"),
        (f"{TASK}corrdiff.errors.JobError: the shard is missing", JobError, "the shard is missing"),
        (f"{TASK}corrdiff.images.ImageError: not a picture", UsageError, "not a picture"),
        (f"{TASK}corrdiff.format.bitstream.BitstreamError: the CRC differs", UsageError, "the CRC differs"),
        (f"{TASK}ValueError: 3 is not 4", JobError, "a task failed with ValueError: 3 is not 4"),
        (f"{TASK}AssertionError", JobError, "a task failed with AssertionError"),
        (
            f"{TASK}OSError: [Errno 36] File name too long: 'x'\n\nThe above exception was the direct cause of:\n"
            "ray.exceptions.UserCodeException: UDF failed to process a data block.",
            JobError, "a task failed with OSError: [Errno 36] File name too long: 'x'",
        ),
        (f"{TASK}pipelines.inputs.archives.BrokenArchiveError: no end", UsageError, "no end"),
        ("ray.exceptions.ActorDiedError: it died", JobError, "Ray: ray.exceptions.ActorDiedError: it died"),
        ("The node died", JobError, "Ray: The node died"),
        (
            f"{TASK}corrdiff.errors.JobError: the first\n\nThe above exception was the cause of:\n"
            "corrdiff.errors.UsageError: the last",
            UsageError, "the last",
        ),
    ],
    ids=["usage", "job", "one module deep", "two modules deep", "not ours", "without words",
        "under Ray's own", "of the pipelines", "Ray's own", "of Ray itself", "the last of several"],
)  # fmt: skip
def test_what_a_task_raised_comes_out_as_the_plain_error_that_it_was(
    text: str, kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind) as caught, ray_errors():
        raise ray.exceptions.RayError(text)
    assert (type(caught.value), str(caught.value)) == (kind, sentence)


def test_an_error_that_is_not_rays_passes_as_it_is() -> None:
    for error in (UsageError("a"), JobError("b"), KeyError("c")):
        with pytest.raises(type(error)) as caught, ray_errors():
            raise error
        assert caught.value is error
