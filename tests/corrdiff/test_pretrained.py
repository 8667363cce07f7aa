"""DISTS, LPIPS with VGG-16, FID and KID through their real loading code, with weights that the test makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from corrdiff import metrics, patch_features, pretrained
from corrdiff.errors import UsageError
from corrdiff.metrics import METRICS, SAMPLINGS, SET_METRICS, Networks
from corrdiff.picture import Picture
from corrdiff.pretrained import INCEPTION, VGG16
from tests.support.trap import Trap

perception = pytest.mark.skipif(
    metrics.version_of("torchmetrics") is None or metrics.version_of("torch-fidelity") is None,
    reason="the extra `perception` is not installed",
)

Draw = Callable[..., Picture]


def _noisy(picture: Picture, strength: float, seed: int = 1) -> Picture:
    noise = np.random.default_rng(seed).normal(0, strength, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with VGG-16 of random weights; what is not part of a distance is one stored number."""
    root = tmp_path_factory.mktemp("vgg")
    with torch.device("meta"):
        shapes = torchvision.models.vgg16(weights=None).state_dict()
    generator = torch.Generator().manual_seed(4)
    state = {}
    for name, tensor in shapes.items():
        if name.startswith("features"):
            scale = (2 / max(1, tensor[0].numel())) ** 0.5 if tensor.ndim > 1 else 0.0
            state[name] = scale * torch.randn(tensor.shape, generator=generator)
        else:
            state[name] = torch.zeros(()).expand(tensor.shape)
    torch.save(state, root / VGG16.file)
    return root


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with Inception v3 of random weights, of which few numbers are stored."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    root = tmp_path_factory.mktemp("inception")
    kept: list[nn.Module] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, _: kept.append(self))
        module.FeatureExtractorInceptionV3("any", ["2048"])
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, tensor in kept[0].state_dict().items():
        if tensor.ndim == 4:
            scale = (2 / tensor[0].numel()) ** 0.5
            state[name] = (scale * torch.randn(tensor.shape, generator=generator)).half()
        else:
            state[name] = tensor
    torch.save(state, root / INCEPTION.file)
    yield root
    pretrained.load_inception.cache_clear()


def _values(name: str, networks: Networks, originals: list[Picture], strengths: tuple[float, ...]) -> list[float]:
    (metric,) = (metric for metric in METRICS if metric.name == name)
    found = [metric.measure(originals[0], _noisy(originals[0], s) if s else originals[0], networks) for s in strengths]
    return [value for value in found if value is not None]


def test_lpips_with_vgg_grows_with_noise_from_0(vgg: Path, draw: Draw) -> None:
    networks = metrics.load_networks(str(vgg))
    values = _values("lpips_vgg", networks, [draw(48, 64)], (0, 8, 40))
    assert values[0] == pytest.approx(0, abs=1e-6) and values == sorted(values) and len(set(values)) == 3


@perception
def test_dists_grows_with_noise_from_0_and_leaves_the_environment_as_it_was(vgg: Path, draw: Draw) -> None:
    pretrained.load_dists.cache_clear()
    before = os.environ.get("TORCH_HOME")
    networks = metrics.load_networks(str(vgg))
    assert os.environ.get("TORCH_HOME") == before
    values = _values("dists", networks, [draw(48, 64)], (0, 8, 40))
    assert values[0] == pytest.approx(0, abs=1e-5) and values == sorted(values) and len(set(values)) == 3
    (dists,) = (metric for metric in METRICS if metric.name == "dists")
    assert dists.measure(draw(15, 64), draw(15, 64), networks) is None
    huge = np.broadcast_to(np.uint8(0), (1 << 20, 1 << 20, 3))
    assert dists.measure(huge, huge, networks) is None


@perception
def test_dists_takes_its_backbone_from_the_file(vgg: Path) -> None:
    network = pretrained.load_dists(vgg / VGG16.file)
    state = torch.load(vgg / VGG16.file, weights_only=True)
    assert torch.equal(network.stage1[0].weight, state["features.0.weight"])  # type: ignore[index, union-attr]
    assert torch.equal(network.stage5[5].weight, state["features.28.weight"])  # type: ignore[index, union-attr]


@pytest.mark.parametrize("content", ["text", "another network", "a pickle"])
@pytest.mark.parametrize("backbone", [VGG16, INCEPTION], ids=["vgg16", "inception"])
def test_a_file_that_is_not_the_network_is_refused_and_not_executed(
    tmp_path: Path, content: str, backbone: pretrained.Backbone
) -> None:
    if backbone is INCEPTION:
        pytest.importorskip("torch_fidelity")
    path, sprung = tmp_path / "wrong.pth", tmp_path / "sprung"
    if content == "text":
        path.write_text("hello")
    else:
        torch.save(Trap(sprung) if content == "a pickle" else nn.Linear(2, 2).state_dict(), path)
    load = pretrained.load_inception if backbone is INCEPTION else lambda path: pretrained.read_state(path, VGG16)
    with pytest.raises(UsageError, match=rf"wrong\.pth does not hold {backbone.title}'s weights") as caught:
        load(path)
    assert "\n" not in str(caught.value) and not sprung.exists()


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [(512, 768, 8), (768, 512, 8), (256, 256, 1), (255, 4000, 0), (511, 1000, 3), (1365, 2048, 68), (640, 640, 5)],
)
def test_patches_are_those_of_a_grid_and_of_the_grid_shifted_by_half(height: int, width: int, count: int) -> None:
    """HiFiC: floor(H/f) floor(W/f) + (floor(H/f) - 1) (floor(W/f) - 1); of Kodak's 24 pictures 192."""
    places = np.arange(height * width).reshape(height, width)
    picture = np.stack([places >> shift & 255 for shift in (0, 8, 16)], -1).astype(np.uint8)
    found = [patch.astype(int) for patch in patch_features.patches(picture)]
    assert len(found) == count and all(patch.shape == (256, 256, 3) for patch in found)
    corners = [int(patch[0, 0] @ [1, 1 << 8, 1 << 16]) for patch in found]
    tops_and_lefts = {divmod(corner, width) for corner in corners}
    rows, columns = height // 256, width // 256
    assert tops_and_lefts == {(256 * i, 256 * j) for i in range(rows) for j in range(columns)} | {
        (256 * i + 128, 256 * j + 128) for i in range(rows - 1) for j in range(columns - 1)
    }


@perception
def test_fid_and_kid_of_a_set_with_itself_are_0_and_grow_with_what_is_done_to_it(inception: Path, draw: Draw) -> None:
    networks = metrics.load_networks(str(inception))
    assert set(networks) == {"patch_features"}
    originals = [draw(256, 600, seed) for seed in range(2)]
    sampling = SAMPLINGS["patch_features"]

    def kept(pictures: list[Picture]) -> list[metrics.Sample]:
        return [sampling(picture, i, 2, networks) for i, picture in enumerate(pictures)]

    sets = [kept([_noisy(p, strength) if strength else p for p in originals]) for strength in (0, 10, 60)]
    assert [len(arrays[0]) for arrays in sets[0]] == [2, 2]
    for name in ("fid", "kid"):
        (metric,) = (metric for metric in SET_METRICS if metric.name == name)
        values = [metric.distance(sets[0], other) for other in sets]
        assert all(value is not None for value in values)
        assert values[0] < values[1] < values[2], values  # type: ignore[operator]
        if name == "fid":
            assert values[0] == pytest.approx(0, abs=1e-4)


@perception
def test_kid_is_0_in_the_mean_and_fid_is_its_closed_form() -> None:
    rng = np.random.default_rng(7)

    def draw_set(patches: int, shift: float = 0.0) -> list[metrics.Sample]:
        return [[rng.normal(shift, 1, (patches, 16)).astype(np.float32)]]

    values = np.array([patch_features.kid(draw_set(60), draw_set(60)) for _ in range(60)])
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert patch_features.kid(draw_set(60), draw_set(60, 2.0)) > 10 * values.std()  # type: ignore[operator]
    far = patch_features.fid(draw_set(20_000), draw_set(20_000, 2.0))
    assert far == pytest.approx(16 * 2.0**2, rel=0.02)  # of equal covariances what is between the means


@perception
def test_kid_of_many_patches_is_the_mean_of_subsets_and_twice_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_features, "SUBSET", 50)
    rng = np.random.default_rng(8)
    one, other = ([[rng.normal(shift, 1, (400, 8)).astype(np.float32)]] for shift in (0.0, 0.5))
    state = torch.random.get_rng_state()
    first = patch_features.kid(one, other)
    assert first == patch_features.kid(one, other) and torch.equal(torch.random.get_rng_state(), state)
    monkeypatch.setattr(patch_features, "SUBSET", 1000)
    assert patch_features.kid(one, other) == pytest.approx(first, rel=0.2)


@perception
@pytest.mark.parametrize("patches", [0, 1])
def test_of_too_few_patches_there_is_no_number(patches: int) -> None:
    one = [[np.zeros((patches, 8), np.float32)]]
    assert patch_features.fid(one, one) is None and patch_features.kid(one, one) is None
    assert patch_features.fid([[]], [[]]) is None
