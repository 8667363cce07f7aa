"""Reading pictures out of a compressed dataset for training: each once an epoch, through kills, at any world size."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from corrdiff import load_codec
from corrdiff.codec import CorrDiffCodec
from corrdiff.errors import JobError, UsageError
from pipelines import CompressedPictures, merge_states
from pipelines.decompress import reader
from tests.support.dataset import SIZES, encoded, write_dataset


@pytest.fixture(scope="module")
def dataset(sliced_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(str(tmp_path_factory.mktemp("compressed") / "out"), str(sliced_dir))


def _pictures(dataset: str, codec: Path, **options: Any) -> CompressedPictures:
    return CompressedPictures(dataset, str(codec), precision="fp32", **options)


KEYS = [f"k{number}" for number in range(7)]


def test_without_a_seed_pictures_come_as_they_lie_and_are_what_the_codec_decodes(
    dataset: str, sliced_dir: Path
) -> None:
    codec = load_codec(str(sliced_dir), precision="fp32")
    found = list(_pictures(dataset, sliced_dir, fields=True))
    assert [key for key, _, _ in found] == KEYS
    for number, (key, x_CHW, fields) in enumerate(found):
        file = encoded(codec, number)
        assert np.array_equal(x_CHW.permute(1, 2, 0).numpy(), codec.decompress(file, "privileged"))
        assert fields == {"txt": key.encode()}
    corrected = dict(_pictures(dataset, sliced_dir, decoding="corrected"))
    file = encoded(codec, 0)
    assert np.array_equal(corrected["k0"].permute(1, 2, 0).numpy(), codec.decompress(file))


def test_a_seed_gives_each_epoch_an_order_of_its_own(dataset: str, sliced_dir: Path) -> None:
    pictures = _pictures(dataset, sliced_dir, seed=1)
    orders = []
    for epoch in (0, 1, 0):
        pictures.set_epoch(epoch)
        orders.append([key for key, _ in pictures])
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[1]) == KEYS


@pytest.mark.parametrize("crop", [16, 64, 200])
def test_a_crop_is_what_the_whole_picture_has_there(dataset: str, sliced_dir: Path, crop: int) -> None:
    whole = dict(_pictures(dataset, sliced_dir))
    corners = Counter[tuple[str, tuple[int, int]]]()
    for epoch in range(3):
        pictures = _pictures(dataset, sliced_dir, seed=1, crop=crop)
        pictures.set_epoch(epoch)
        for key, x_CHW in pictures:
            assert x_CHW.shape == (3, crop, crop)
            padded = np.pad(whole[key].numpy(), ((0, 0), (0, crop), (0, crop)), mode="symmetric")
            height, width = whole[key].shape[1:]
            rows, columns = max(height - crop, 0) + 1, max(width - crop, 0) + 1
            like_its_first = (padded[:, :rows, :columns] == x_CHW.numpy()[:, :1, :1]).all(0)
            there = [
                (int(y), int(x)) for y, x in np.argwhere(like_its_first)
                if np.array_equal(padded[:, y : y + crop, x : x + crop], x_CHW.numpy())
            ]  # fmt: skip
            assert there
            corners[key, there[0]] += 1
    assert len(corners) > len(KEYS) or crop == 200


def test_of_a_tiled_picture_only_the_tiles_of_a_crop_are_decoded(
    dataset: str, sliced_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = []
    original = CorrDiffCodec.decompress_batch

    def spying(self: CorrDiffCodec, files: list[bytes], *args: Any, box: Any = None) -> Any:
        boxes.append(box)
        return original(self, files, *args, box=box)

    monkeypatch.setattr(CorrDiffCodec, "decompress_batch", spying)
    list(_pictures(dataset, sliced_dir, seed=1, crop=16))
    assert sum(box is not None for box in boxes) == 1
    assert {box[2:] for box in boxes if box} == {(16, 16)}


def test_latents_are_what_the_codec_decodes_to_before_its_networks(dataset: str, sliced_dir: Path) -> None:
    codec = load_codec(str(sliced_dir), precision="fp32")
    found = dict(_pictures(dataset, sliced_dir, latents=True))
    for number, (height, width) in enumerate(SIZES):
        y_hat_Mhw = found[f"k{number}"]
        assert y_hat_Mhw.shape[1:] == (-(-height // 16), -(-width // 16))
        assert y_hat_Mhw.dtype == torch.float32
    file = encoded(codec, 3)
    x_1CHW = torch.from_numpy(codec.decompress(file, "privileged")).permute(2, 0, 1)[None]
    y_1Mhw = torch.nn.functional.pad(found["k3"][None], (0, 2, 0, 2))  # 64 x 64 pixels; there is nothing of it
    d_1CHW = codec.networks.privileged(y_1Mhw, torch.ones(1, 1, 1, 1))[:, :, :20, :24]
    assert (d_1CHW.mul(127.5).add(127.5).clamp(0, 255) - x_1CHW).abs().mean() < 12
    crops = dict(_pictures(dataset, sliced_dir, latents=True, crop=32, seed=0))
    whole = found["k2"]
    assert any(
        torch.equal(whole[:, y : y + 2, x : x + 2], crops["k2"]) for y in range(9) for x in range(9)
    )  # fmt: skip


@pytest.mark.parametrize(("crop", "latents"), [(0, False), (40, True)])
def test_a_crop_that_cannot_be_is_refused(dataset: str, sliced_dir: Path, crop: int, latents: bool) -> None:
    with pytest.raises(UsageError, match="crop must be positive, and with latents a multiple of 16"):
        _pictures(dataset, sliced_dir, crop=crop, latents=latents)


def _read(pictures: CompressedPictures, rank: int, ranks: int, most: int) -> list[str]:
    """What a reader that is killed after some pictures has had."""
    pictures._ranks_of_parent = ranks, rank
    found = []
    for key, _ in pictures:
        found.append(key)
        if len(found) == most:
            break
    return found


def test_readers_that_are_killed_go_on_at_any_world_size_and_have_each_picture_once(
    dataset: str, sliced_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CompressedPictures, "_decoded", lambda self, files, *_: [torch.zeros(1)] * len(files))
    for seed in range(60):
        rng, state, read = random.Random(seed), None, list[str]()
        while len(read) < len(KEYS):
            ranks, states = rng.randint(1, 3), []
            for rank in range(ranks):
                pictures = _pictures(dataset, sliced_dir, seed=seed)
                if state is not None:
                    pictures.load_state_dict(state)
                read += _read(pictures, rank, ranks, rng.randint(1, 4))
                own = pictures.state_dict()
                again = _pictures(dataset, sliced_dir, seed=seed)  # the same reader, in another process
                again.load_state_dict(own)
                read += _read(again, rank, ranks, rng.randint(1, 2))
                states.append(again.state_dict())
            state = merge_states(rng.sample(states, len(states)))
        assert sorted(read) == KEYS


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_goes_on_where_it_was(dataset: str, sliced_dir: Path, workers: int) -> None:
    def loader() -> StatefulDataLoader[Any]:
        pictures = _pictures(dataset, sliced_dir, seed=2, crop=16)
        return StatefulDataLoader(pictures, batch_size=None, num_workers=workers)

    first = loader()
    whole = [(key, x.sum().item()) for key, x in first]
    assert sorted(key for key, _ in whole) == KEYS
    for after in (1, 4):
        stopped = loader()
        each = iter(stopped)
        read = [next(each) for _ in range(after)]
        state = stopped.state_dict()
        del each
        other = loader()
        other.load_state_dict(state)
        assert [(key, x.sum().item()) for key, x in [*read, *other]] == whole


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_loader_workers_of_all_ranks_have_each_picture_once(dataset: str, sliced_dir: Path, context: str) -> None:
    read = []
    for rank in range(2):
        pictures = _pictures(dataset, sliced_dir, seed=0, crop=16)
        pictures._ranks_of_parent = 2, rank
        read += [k for k, _ in DataLoader(pictures, batch_size=None, num_workers=2, multiprocessing_context=context)]
    assert sorted(read) == KEYS


def test_a_state_of_something_else_is_refused(dataset: str, sliced_dir: Path) -> None:
    pictures = _pictures(dataset, sliced_dir, seed=0)
    read = _read(pictures, 0, 2, 2)
    state = pictures.state_dict()
    with pytest.raises(UsageError, match="the state is of another seed: 0 there, 1 now"):
        _pictures(dataset, sliced_dir, seed=1).load_state_dict(state)
    other = _pictures(dataset, sliced_dir, seed=0)
    other.load_state_dict(state)
    with pytest.raises(UsageError, match=r"of reader 0 of 2, and this is 0 of 3: put the states .* with merge_states"):
        _read(other, 0, 3, 1)
    for states, message in (
        ([], "no states"), ([state], "1 states are not those of each of 2 readers"),
        ([state, {**state, "reader": 1, "epoch": 1}], "not of one epoch"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            merge_states(states)
    other.load_state_dict(state)
    other.set_epoch(1)
    assert len(read + _read(other, 0, 1, 99)) == 2 + len(KEYS)


def test_a_part_with_other_pictures_than_its_record_says_is_an_error(
    dataset: str, sliced_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = reader.read_files
    monkeypatch.setattr(reader, "read_files", lambda *args: original(*args)[:-1])
    with pytest.raises(JobError, match=r"unit 0 of .* has 2 pictures, not as many as it had"):
        list(_pictures(dataset, sliced_dir))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_real_ranks_that_are_killed_go_on_at_another_world_size(
    dataset: str, sliced_dir: Path, tmp_path: Path, seed: int
) -> None:
    rng, read, state = random.Random(seed), list[str](), None
    for attempt in range(len(KEYS)):
        ranks, workers, outs = rng.randint(1, 3), rng.randint(0, 2), list[Path]()
        common = {
            "dataset": dataset, "codec": str(sliced_dir), "seed": seed, "epoch": 3, "state": state, "workers": workers,
            "ranks": ranks, "rendezvous": str(tmp_path / f"rendezvous-{attempt}"),
        }  # fmt: skip
        processes = []
        for rank in range(ranks):
            outs.append(tmp_path / f"{attempt}-{rank}.json")
            arguments = json.dumps({**common, "rank": rank, "out": str(outs[-1])})
            processes.append(subprocess.Popen([sys.executable, "-m", "tests.support.read_as_rank", arguments]))
        deadline, most = time.monotonic() + 120, rng.randint(1, 3)
        while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
            written = [json.loads(out.read_text()) for out in outs if out.exists()]
            if len(written) == ranks and sum(len(w["keys"]) for w in written) >= most:
                break
            time.sleep(0.05)
        for process in processes:
            process.kill()
            process.wait()
        written = [json.loads(out.read_text()) for out in outs]
        read += [key for w in written for key in w["keys"]]
        state = merge_states([state for w in written for state in w["states"]])
        if len(read) == len(KEYS):
            break
    assert sorted(read) == KEYS
