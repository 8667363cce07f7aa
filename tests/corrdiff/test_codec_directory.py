from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import (
    default_precision,
    fingerprint,
    load_codec,
    load_networks,
    read_config,
    save_codec,
)


def test_a_codec_that_is_saved_again_keeps_its_fingerprint(codec_dir: Path, tmp_path: Path) -> None:
    model, tables, digest = load_networks(str(codec_dir))
    assert save_codec(model, tables, str(tmp_path / "again")) == digest


def test_a_loaded_codec_carries_the_first_bytes_of_its_fingerprint(codec_dir: Path, codec: CorrDiffCodec) -> None:
    assert codec.fingerprint.hex() == read_config(str(codec_dir))[1][:16]


def test_loaded_weights_are_those_that_were_saved(codec_dir: Path, tmp_path: Path) -> None:
    model, tables, _ = load_networks(str(codec_dir))
    save_codec(model, tables, str(tmp_path / "again"))
    again, tables_again, _ = load_networks(str(tmp_path / "again"))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(t, tables_again.tensors[name]) for name, t in tables.tensors.items())


def test_provenance_is_kept_and_is_no_part_of_the_fingerprint(codec_dir: Path, tmp_path: Path) -> None:
    model, tables, digest = load_networks(str(codec_dir))
    assert save_codec(model, tables, str(tmp_path / "again"), {"crops_seen": 5}) == digest
    assert read_config(str(tmp_path / "again"))[2] == {"crops_seen": 5}


@pytest.mark.parametrize("name", ["weights", "tables"])
def test_the_fingerprint_depends_on_every_value(codec_dir: Path, name: str) -> None:
    config, digest, _ = read_config(str(codec_dir))
    model, tables, _ = load_networks(str(codec_dir))
    weights = {n: p.detach() for n, p in model.named_parameters()}
    groups = {"weights": weights, "tables": dict(tables.tensors)}
    assert fingerprint(config, groups["weights"], groups["tables"]) == digest
    last = sorted(groups[name])[-1]
    groups[name][last] = groups[name][last].clone()
    groups[name][last].view(-1)[-1] += 1
    assert fingerprint(config, groups["weights"], groups["tables"]) != digest


def test_a_codec_can_be_saved_to_any_file_system(codec_dir: Path) -> None:
    model, tables, digest = load_networks(str(codec_dir))
    save_codec(model, tables, "memory://bucket/codec")
    assert load_codec("memory://bucket/codec").fingerprint.hex() == digest[:16]


def test_a_codec_on_disk_decodes_what_the_one_in_memory_encoded(codec_dir: Path, codec: CorrDiffCodec) -> None:
    picture = np.full((9, 5, 3), 77, np.uint8)
    data = codec.compress(picture, steps=1)
    assert np.array_equal(load_codec(str(codec_dir)).decompress(data), codec.decompress(data))


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_bf16_is_chosen_on_gpus_that_compute_in_it_and_not_where_it_is_emulated(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert default_precision("cuda") == precision
