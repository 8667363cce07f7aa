"""What a user gets wrong about object storage is a sentence, and says no secret."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.servers import S3_SECRET, free_port


@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrongsecret1"}, 2, "error: listing s3://bucket/none/checkpoints is not permitted"),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:{port}", "AWS_MAX_ATTEMPTS": "1"},
            1,
            "failed: listing s3://bucket/none",
        ),
        ({}, 2, "error: no finished checkpoint under s3://bucket/none"),
    ],
    ids=["wrong secret", "server away", "nothing there"],
)
def test_storage_that_refuses_is_one_sentence(s3: str, variables: dict[str, str], code: int, said: str) -> None:
    changed = {k: v.format(port=free_port()) for k, v in variables.items()}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", "export", f"{s3}/none", "out"],
        env={**os.environ, **changed}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert S3_SECRET not in done.stderr + done.stdout
    assert "wrongsecret1" not in done.stderr + done.stdout
