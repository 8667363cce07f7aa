"""What the driver says of a training that failed; what it does on Ray is in tests/distributed."""

from __future__ import annotations

import os

import pytest
from ray.train.v2.api.exceptions import WorkerGroupError

from pipelines.train import job


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("frames\nno space left"), "RuntimeError: no space left"),
        (RuntimeError("the exchange broke"), "RuntimeError: the exchange broke"),
        (RuntimeError(), "RuntimeError: no message"),
        (
            RuntimeError("[unbound_buffer.cc:78] Timed out waiting 600000ms for recv operation to complete"),
            "a worker was waited for 10 minutes: it hangs, or its machine or network does (RuntimeError: "
            "[unbound_buffer.cc:78] Timed out waiting 600000ms for recv operation to complete)",
        ),
    ],
    ids=["its last line", "a word in another", "no message", "a worker that hangs"],
)
def test_a_failure_is_the_workers_own_words_and_a_hanging_one_is_called_so(error: Exception, said: str) -> None:
    assert job._reason(WorkerGroupError("many frames", {1: error})) == said


def test_a_worker_that_hangs_is_waited_for_ten_minutes_and_named_by_nccl_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in job.DETECTOR:
        monkeypatch.delenv(name, raising=False)
    cpu = job._backend(use_gpu=False)
    assert (cpu.backend, cpu.timeout_s) == ("gloo", 600)
    assert not job.DETECTOR.keys() & os.environ.keys()
    monkeypatch.setenv("RAY_TRAIN_NCCL_RAS_ACTION", "observe")
    gpu = job._backend(use_gpu=True)
    assert (gpu.backend, gpu.timeout_s) == ("nccl", 600)
    assert os.environ["RAY_TRAIN_ENABLE_NCCL_HANG_DETECTOR"] == "1"
    assert int(os.environ["RAY_TRAIN_NCCL_RAS_CONFIRM_DURATION_S"]) < 600
    assert os.environ["RAY_TRAIN_NCCL_RAS_ACTION"] == "observe", "what a person has said stays"
    for name in job.DETECTOR:
        monkeypatch.delenv(name)
