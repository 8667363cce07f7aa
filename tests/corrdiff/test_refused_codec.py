"""A codec directory that is missing, damaged or hostile gets one sentence that names it."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from corrdiff.cli import main
from corrdiff.codec_directory import (
    CONFIG_FILE,
    TABLES_FILE,
    WEIGHTS_FILE,
    fingerprint,
    load_codec,
    load_networks,
    read_config,
)
from corrdiff.config import CodecConfig
from corrdiff.errors import UsageError
from corrdiff.images import save_png
from tests.support.codecs import refusal, replace_file
from tests.support.edits import Edit, set_at
from tests.support.trap import Trap


@pytest.fixture
def copy(codec_dir: Path, tmp_path: Path) -> Path:
    """The codec again, its files linked: replace them, never write into them."""
    return Path(shutil.copytree(codec_dir, tmp_path / "copy", copy_function=os.link))


@pytest.mark.parametrize("name", [WEIGHTS_FILE, TABLES_FILE])
@pytest.mark.parametrize("where", [0, 8, 60, 0.5, -1])
def test_a_flipped_byte_is_noticed(copy: Path, name: str, where: float) -> None:
    data = bytearray((copy / name).read_bytes())
    data[int(where * len(data)) if isinstance(where, float) else where] ^= 0x04
    replace_file(copy, name, bytes(data))
    assert "damaged" in refusal(copy) or "do not match the fingerprint" in refusal(copy)


@pytest.mark.parametrize("name", [WEIGHTS_FILE, TABLES_FILE])
@pytest.mark.parametrize("length", [0, 5, 100_000])
def test_a_truncated_file_is_noticed(copy: Path, name: str, length: int) -> None:
    replace_file(copy, name, (copy / name).read_bytes()[:length])
    assert f"{name} is damaged" in refusal(copy)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, TABLES_FILE])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert f"there is no {name}" in refusal(copy)


def test_a_directory_that_is_not_there_is_no_codec(tmp_path: Path) -> None:
    assert "no codec at" in refusal(tmp_path / "nothing")


def test_a_file_is_no_codec(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    assert "no codec at" in refusal(tmp_path / "file")


@pytest.mark.parametrize("uri", ["nosuchprotocol://bucket/codec", "gs://bucket/codec"])
def test_storage_without_a_driver_is_reported(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    assert "config.json cannot be read" in refusal(uri)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (set_at("format", to="corrdiff-codec-9"), "format 'corrdiff-codec-9' is unknown"),
        (set_at("fingerprint", to="0" * 64), "do not match the fingerprint"),
        (set_at("fingerprint", to="00" * 31), "a fingerprint of 31 bytes, not of 32"),
        (set_at("fingerprint", to=7), "cannot be read"),
        (set_at("fingerprint", to="not hexadecimal"), "cannot be read"),
        (lambda data: data.pop("fingerprint"), "cannot be read"),
        (lambda data: data.pop("codec"), "cannot be read"),
        (set_at("codec", "surprise", to=1), r"unknown fields \['surprise'\]"),
        (set_at("codec", "denoiser", "surprise", to=1), r"unknown fields \['surprise'\]"),
        (set_at("codec", "transform", "blocks", to="two"), "must be a whole number"),
        (set_at("codec", "transform", "patch", to=3), "patch must be"),
        (set_at("codec", "transform", "blocks", to=65536), "blocks must be from 1 to 64"),
        (set_at("codec", "transform", "latent_channels", to=0), "must be at least 1"),
        (set_at("codec", "denoiser", "time_channels", to=3), "time_channels must be even"),
        (set_at("codec", "denoiser", "channels", to=[65536] * 4), "needs channels for 3 resolutions"),
        (set_at("codec", "diffusion", "grid", to=7), "grid must be"),
        (set_at("codec", "diffusion", "steps", to=4), "do not match the fingerprint"),
        (set_at("codec", to="text"), "not an object"),
        (set_at("codec", to=None), "not an object"),
        (set_at("codec", to=[1, 2]), "not an object"),
    ],
)
def test_a_configuration_that_is_not_right_is_refused(copy: Path, edit: Edit, said: str) -> None:
    data = _unsealed(copy)
    edit(data)
    replace_file(copy, CONFIG_FILE, json.dumps(data).encode())
    with pytest.raises(UsageError, match=said):
        load_codec(str(copy))
    refusal(copy)


@pytest.mark.parametrize(
    "garbage", [b"", b"{", b"null", b"[1, 2]", b'"text"', b"\xff\xfe\x00", b"[" * 100_000, b"import os"]
)
def test_a_configuration_that_is_garbage_is_refused(copy: Path, garbage: bytes) -> None:
    replace_file(copy, CONFIG_FILE, garbage)
    assert "config.json cannot be read" in refusal(copy)


def test_weights_of_another_shape_are_refused(copy: Path) -> None:
    model, tables, _ = load_networks(str(copy))
    weights = {name: p.detach() for name, p in model.named_parameters()}
    name, tensor = next(iter(weights.items()))
    weights[name] = tensor[:-1].clone()
    data = _unsealed(copy)
    data["fingerprint"] = fingerprint(read_config(str(copy))[0], weights, tables.tensors)
    replace_file(copy, CONFIG_FILE, json.dumps(data).encode())
    replace_file(copy, WEIGHTS_FILE, safetensors.torch.save(weights))
    assert "weights.safetensors does not fit config.json" in refusal(copy)


def _unsealed(directory: Path) -> dict[str, Any]:
    """The configuration as an older version wrote it, without a checksum."""
    data: dict[str, Any] = json.loads((directory / CONFIG_FILE).read_text())
    del data["checksum"]
    return data


def _sealed(directory: Path, change: Callable[[dict[str, Any], dict[str, Any], dict[str, Any]], object]) -> None:
    """Change configuration, weights and tables as someone would who can compute a fingerprint."""
    model, tables, _ = load_networks(str(directory))
    weights = {name: p.detach() for name, p in model.named_parameters()}
    tensors = dict(tables.tensors)
    data = _unsealed(directory)
    change(data, weights, tensors)
    data["fingerprint"] = fingerprint(CodecConfig.from_dict(data["codec"]), weights, tensors)
    replace_file(directory, CONFIG_FILE, json.dumps(data).encode())
    replace_file(directory, WEIGHTS_FILE, safetensors.torch.save(weights))
    replace_file(directory, TABLES_FILE, safetensors.torch.save(tensors))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda data, weights, tables: set_at("codec", "denoiser", "channels", to=[65536] * 3)(data),
            "weights.safetensors does not fit config.json",
        ),
        (lambda data, weights, tables: weights.pop("gain.log_gain_QM"), "weights.safetensors does not fit"),
        (
            lambda data, weights, tables: weights.update({"gain.log_gain_QM": weights["gain.log_gain_QM"].double()}),
            "weights.safetensors does not fit",
        ),
        (lambda data, weights, tables: tables.pop("h_s.1.bias"), "tables.safetensors: codec tables: .* is missing"),
        (
            lambda data, weights, tables: tables.update(
                {f"z.{part}": tables[f"z.{part}"][:8] for part in ("cdf", "length", "offset")}
            ),
            "tables.safetensors: codec tables: .* do not fit",
        ),
        (
            lambda data, weights, tables: tables.update(
                {f"h_s.2.{part}": tables[f"h_s.2.{part}"][:64] for part in ("weight", "bias")}
            ),
            "tables.safetensors does not fit config.json",
        ),
    ],
)
def test_a_codec_that_is_hostile_under_a_right_fingerprint_is_refused(
    copy: Path, capsys: pytest.CaptureFixture[str], change: Any, said: str
) -> None:
    _sealed(copy, change)
    assert re.search(said, refusal(copy))
    (copy / "picture.png").write_bytes(save_png(np.zeros((8, 8, 3), np.uint8)))
    assert main(["encode", str(copy / "picture.png"), str(copy / "out.crdf"), "--codec", str(copy)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (copy / "out.crdf").exists()


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, TABLES_FILE])
@pytest.mark.parametrize("torch_file", [False, True])
def test_nothing_is_unpickled(copy: Path, tmp_path: Path, name: str, torch_file: bool) -> None:
    sprung, source = tmp_path / "sprung", tmp_path / "trap"
    if torch_file:
        torch.save(Trap(sprung), source)
    else:
        source.write_bytes(pickle.dumps(Trap(sprung)))
    replace_file(copy, name, source.read_bytes())
    assert name in refusal(copy)
    assert not sprung.exists()


def test_a_codec_that_does_not_come_with_the_package_is_refused() -> None:
    assert "no codec builtin:huge comes with this package" in refusal("builtin:huge")


@pytest.mark.parametrize("name", ["../tests", "tiny/../../..", "", "."])
def test_the_name_of_a_builtin_codec_is_no_path(name: str) -> None:
    assert "comes with this package" in refusal(f"builtin:{name}")
