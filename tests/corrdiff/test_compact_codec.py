from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from corrdiff.codec_directory import (
    WEIGHTS_FILE,
    load_codec,
    load_networks,
    save_codec,
)
from tests.support.codecs import refusal, replace_file


@pytest.fixture
def compact(codec_dir: Path, tmp_path: Path) -> Path:
    model, tables, _ = load_networks(str(codec_dir))
    save_codec(model, tables, str(tmp_path / "compact"), compact=True)
    return tmp_path / "compact"


def test_a_compact_codec_is_small_and_its_weights_nearly_the_same(compact: Path, codec_dir: Path) -> None:
    sizes = [(directory / WEIGHTS_FILE).stat().st_size for directory in (compact, codec_dir)]
    assert sizes[0] < 0.27 * sizes[1]
    (ours, _, digest), (theirs, _, other) = (load_networks(str(directory)) for directory in (compact, codec_dir))
    assert digest != other
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if p.ndim < 2 or p.numel() < 1024:
            assert torch.equal(p, q), name
        else:
            largest = q.detach().flatten(1).abs().amax(1).reshape(-1, *[1] * (q.ndim - 1))
            assert ((p - q).abs() <= largest / 253).all(), name


def test_a_compact_codec_codes_pictures_and_is_the_same_when_it_is_read_again(
    compact: Path, draw: Callable[..., np.ndarray[Any, Any]]
) -> None:
    first, again = (load_codec(str(compact), precision="fp32") for _ in range(2))
    data = first.compress(draw(64, 64), steps=1)
    assert data == again.compress(draw(64, 64), steps=1)
    assert first.decompress(data).shape == (64, 64, 3)


def test_saving_a_compact_codec_again_changes_nothing(compact: Path, tmp_path: Path) -> None:
    model, tables, digest = load_networks(str(compact))
    assert save_codec(model, tables, str(tmp_path / "full")) == digest


@pytest.mark.parametrize("change", ["missing", "short", "other"])
def test_scales_that_do_not_fit_are_refused(compact: Path, change: str) -> None:
    stored = safetensors.torch.load((compact / WEIGHTS_FILE).read_bytes())
    name = next(name for name in sorted(stored) if name.endswith(".scale") and stored[name].all())
    if change == "missing":
        del stored[name]
    else:
        stored[name] = stored[name][:2] if change == "short" else stored[name] * 2
    replace_file(compact, WEIGHTS_FILE, safetensors.torch.save(stored))
    said = "do not match the fingerprint" if change == "other" else "weights without their scales"
    assert said in refusal(compact)
