"""Which pictures make which shard, and the bytes of a shard, before Ray has any part in it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from corrdiff.errors import JobError, UsageError
from corrdiff.images import open_image, save_png
from pipelines.inputs.sources import Source
from pipelines.shards.config import ShardConfig
from pipelines.shards.cut import Group, crop_positions, cut_group, detail, plan_groups

Draw = Callable[..., npt.NDArray[np.uint8]]


def _sources(count: int) -> list[Source]:
    return [Source(f"key{i}", f"/pictures/{i}.png") for i in range(count)]


@given(
    count=st.integers(1, 60), each=st.integers(1, 9), share=st.floats(0, 0.99), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_every_picture_is_in_exactly_one_group_and_the_held_out_share_is_rounded_up(
    count: int, each: int, share: float, seed: int
) -> None:
    config = ShardConfig(pictures_per_shard=each, val_fraction=share, seed=seed)
    groups = plan_groups(_sources(count), config)
    assert sorted(source for group in groups for source in group.sources) == sorted(_sources(count))
    held_out = [source for group in groups if group.split == "val" for source in group.sources]
    assert len(held_out) == int(np.ceil(share * count))
    assert all(1 <= len(group.sources) <= each for group in groups)
    assert len({group.name for group in groups}) == len(groups)
    assert groups == plan_groups(_sources(count), config)


def test_another_seed_is_another_order() -> None:
    one, other = (plan_groups(_sources(20), ShardConfig(seed=seed)) for seed in (0, 1))
    assert one != other


@given(size=st.integers(1, 3000), crop=st.integers(16, 512), data=st.data())
def test_crops_reach_both_borders_and_are_at_most_a_stride_apart(size: int, crop: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, crop))
    positions = crop_positions(size, crop, stride)
    if size < crop:
        assert positions == []
        return
    assert (positions[0], positions[-1]) == (0, size - crop)
    assert all(0 <= step <= stride for step in np.diff(positions))


def test_detail_is_nothing_in_a_flat_crop_and_a_level_a_pixel_in_a_slope() -> None:
    assert detail(np.full((32, 32, 3), 200, np.uint8)) == 0
    slope = np.repeat(np.arange(32, dtype=np.uint8)[None, :, None], 32, 0).repeat(3, 2)
    assert detail(slope) == 0.5  # along one axis of two


def _read(pictures: dict[str, bytes]) -> Callable[[Source], bytes]:
    def read(source: Source) -> bytes:
        if source.uri not in pictures:
            raise FileNotFoundError(f"no {source.uri}")
        return pictures[source.uri]

    return read


def test_a_shard_holds_every_crop_where_its_index_says(draw: Draw) -> None:
    pixels = draw(100, 130)
    group = Group("train", 7, (Source("a", "/a.png"),))
    config = ShardConfig(crop=64, stride=48)
    cut = cut_group(group, _read({"/a.png": save_png(pixels)}), config)
    assert cut.shard.name == "shard-00007.tar" and cut.skipped == () and cut.flat == 0
    assert cut.shard.bytes == len(cut.tar_data)
    assert cut.shard.sha256 == hashlib.sha256(cut.tar_data).hexdigest()
    assert cut.shard.index_sha256 == hashlib.sha256(cut.index_data).hexdigest()
    index = safetensors.numpy.load(cut.index_data)
    with tarfile.open(fileobj=io.BytesIO(cut.tar_data)) as tar:
        files = {info.name: tar.extractfile(info) for info in tar}
        members = {name: file.read() for name, file in files.items() if file is not None}
    expected = [(y, x) for y in crop_positions(100, 64, 48) for x in crop_positions(130, 64, 48)]
    assert cut.shard.count == len(expected) == len(members) // 2
    for number, (y, x) in enumerate(expected):
        key = cut.shard.key(number)
        assert json.loads(members[f"{key}.json"]) == {"source": "/a.png", "y": y, "x": x}
        png = members[f"{key}.png"]
        np.testing.assert_array_equal(open_image(png).pixels, pixels[y : y + 64, x : x + 64])
        at, size = index["offset"][number], index["size"][number]
        assert cut.tar_data[at : at + size] == png
        assert index["sha256"][number].tobytes() == hashlib.sha256(png).digest()
    assert cut_group(group, _read({"/a.png": save_png(pixels)}), config) == cut


def test_a_picture_is_cut_at_each_scale(draw: Draw) -> None:
    pixels = draw(200, 300)
    config = ShardConfig(crop=64, scales="1,0.5")
    cut = cut_group(Group("train", 0, (Source("a.png", "/a.png"),)), _read({"/a.png": save_png(pixels)}), config)
    halved = np.asarray(Image.fromarray(pixels).resize((150, 100), Image.Resampling.LANCZOS))
    with tarfile.open(fileobj=io.BytesIO(cut.tar_data)) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    places = [json.loads(data) for name, data in members.items() if name.endswith(".json")]
    crops = [open_image(data).pixels for name, data in members.items() if name.endswith(".png")]
    assert [place.get("scale") for place in places].count(None) == 4 * 5
    assert [place.get("scale") for place in places].count(0.5) == 2 * 3
    for place, crop in zip(places, crops, strict=True):
        scaled, y, x = (halved if "scale" in place else pixels), place["y"], place["x"]
        assert np.array_equal(crop, scaled[y : y + 64, x : x + 64])


@pytest.mark.parametrize("scales", ["", "2", "0", "1,", "half", "nan"])
def test_scales_that_are_none_are_refused(scales: str) -> None:
    with pytest.raises(UsageError, match="--scales"):
        ShardConfig(scales=scales)


def test_what_gives_no_crops_is_skipped_with_its_reason_and_flat_crops_are_counted(draw: Draw) -> None:
    half = draw(64, 128)
    half[:, 64:] = 255
    pictures = {"/half.png": save_png(half), "/small.png": save_png(draw(40, 90)), "/broken.png": b"no picture"}
    sources = tuple(Source(name, f"/{name}.png") for name in ("half", "small", "broken", "missing"))
    cut = cut_group(Group("val", 0, sources), _read(pictures), ShardConfig(crop=64))
    assert (cut.shard.count, cut.flat) == (1, 1)
    reasons = dict(cut.skipped)
    assert reasons.keys() == {"/small.png", "/broken.png", "/missing.png"}
    assert reasons["/small.png"] == "90x40 is smaller than the crop"
    assert reasons["/missing.png"] == "no /missing.png"


def test_storage_that_fails_for_long_is_no_pictures_fault() -> None:
    def fails(source: Source) -> bytes:
        raise JobError(f"reading {source.uri} failed 5 times")

    with pytest.raises(JobError, match="failed 5 times"):
        cut_group(Group("train", 0, (Source("a", "/a.png"),)), fails, ShardConfig(crop=64))
