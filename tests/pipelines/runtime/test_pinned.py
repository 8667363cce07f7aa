"""Workers refuse a codec that took the place of the one with which their job began."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from corrdiff.codec_directory import load_networks, read_config, save_codec
from corrdiff.errors import JobError
from pipelines.compress.code import Coder
from pipelines.compress.encode import Encoder
from pipelines.compress.rate_target import Sampler
from pipelines.decompress.config import DecompressConfig
from pipelines.decompress.stages import Decoder
from tests.support.compression import QUICK

WORKERS: dict[str, Callable[[str, str], object]] = {
    "encoder": lambda uri, fingerprint: Encoder(uri, QUICK, "cpu", None, fingerprint),
    "coder": lambda uri, fingerprint: Coder(uri, None, fingerprint),
    "sampler": lambda uri, fingerprint: Sampler(uri, QUICK, "cpu", {}, fingerprint),
    "decoder": lambda uri, fingerprint: Decoder(uri, "cpu", DecompressConfig(precision="fp32"), fingerprint),
}


@pytest.mark.parametrize("name", WORKERS)
def test_a_worker_takes_the_codec_of_its_job_and_no_other(name: str, codec_dir: Path, tmp_path: Path) -> None:
    uri = str(shutil.copytree(codec_dir, tmp_path / "codec"))
    began_with = read_config(uri)[1]
    WORKERS[name](uri, began_with)
    model, tables, _ = load_networks(uri)
    with torch.no_grad():
        next(model.analysis.parameters()).add_(0.01)
    there = save_codec(model, tables, uri, overwrite=True)
    with pytest.raises(JobError) as caught:
        WORKERS[name](uri, began_with)
    assert str(caught.value) == (
        f"the codec at {uri} is another one now: the job began with {began_with[:16]}, and {there[:16]} is there; put "
        "the first one back, and run the same command again"
    )
