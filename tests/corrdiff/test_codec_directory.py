from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from corrdiff import codec_directory
from corrdiff.codec import CorrDiffCodec
from corrdiff.codec_directory import (
    CONFIG_FILE,
    default_precision,
    fingerprint,
    load_codec,
    load_networks,
    read_config,
    save_codec,
)
from corrdiff.errors import JobError, UsageError


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


def test_another_codec_is_not_written_over_unless_that_is_said(codec_dir: Path, tmp_path: Path) -> None:
    model, tables, digest = load_networks(str(codec_dir))
    out = str(tmp_path / "codec")
    assert save_codec(model, tables, out) == save_codec(model, tables, out) == digest
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    with pytest.raises(UsageError, match="holds another codec, without which its files cannot be read"):
        save_codec(model, tables, out)
    assert read_config(out)[1] == digest
    assert save_codec(model, tables, out, overwrite=True) != digest


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_written_nor_read(
    codec_dir: Path, tmp_path: Path, value: float
) -> None:
    model, tables, _ = load_networks(str(codec_dir))
    before = codec_directory._not_finite
    with torch.no_grad():
        list(model.decoder.parameters())[-1].view(-1)[0] = value
    with pytest.raises(JobError, match="the weights are not finite"):
        save_codec(model, tables, str(tmp_path / "codec"))
    assert list(tmp_path.iterdir()) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_directory, "_not_finite", lambda tensors: None)
        save_codec(model, tables, str(tmp_path / "codec"))
    assert codec_directory._not_finite is before
    with pytest.raises(UsageError, match="has values that are not finite"):
        load_networks(str(tmp_path / "codec"))


def test_a_configuration_of_which_a_bit_is_flipped_is_an_error_or_the_same(codec_dir: Path, tmp_path: Path) -> None:
    whole, expected = (codec_dir / CONFIG_FILE).read_bytes(), read_config(str(codec_dir))
    same = 0
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / CONFIG_FILE).write_bytes(flipped)
        try:
            assert read_config(str(tmp_path)) == expected
            same += 1
        except UsageError as error:
            assert len(str(error).splitlines()) == 1
    assert same < len(whole) // 2  # white space alone


def test_a_configuration_without_a_checksum_is_an_older_one(codec_dir: Path, tmp_path: Path) -> None:
    config = json.loads((codec_dir / CONFIG_FILE).read_bytes())
    del config["checksum"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    assert read_config(str(tmp_path)) == read_config(str(codec_dir))
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config | {"provenance": []}))
    with pytest.raises(UsageError, match="its provenance is no object"):
        read_config(str(tmp_path))
