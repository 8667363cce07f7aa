from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from corrdiff.errors import UsageError
from corrdiff.metrics import lpips_distance
from corrdiff.perceptual import load_lpips, lpips_loss, lpips_map, lpips_weights, missing_lpips_sentence
from corrdiff.picture import Picture
from corrdiff.pretrained import ALEXNET
from tests.support.trap import Trap

Draw = Callable[..., Picture]


def _noisy(picture: Picture, strength: float, seed: int = 1) -> Picture:
    noise = np.random.default_rng(seed).normal(0, strength, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where torchvision keeps its downloads, with an AlexNet of random weights in it."""
    home = tmp_path_factory.mktemp("torch")
    torch.manual_seed(3)
    state = torchvision.models.alexnet(weights=None).state_dict()
    for name, tensor in state.items():
        if name.startswith("classifier"):  # not part of the distance: one stored number for all
            state[name] = torch.zeros(()).expand(tensor.shape)
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, home / "hub" / "checkpoints" / ALEXNET.file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def network(torch_home: Path) -> nn.Module:
    path = lpips_weights()
    assert path is not None
    return load_lpips(path)


def test_the_backbone_is_found_where_torchvision_keeps_it(torch_home: Path) -> None:
    assert lpips_weights() == torch_home / "hub" / "checkpoints" / ALEXNET.file


def test_the_cache_directory_of_the_system_is_respected(
    torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "torch").symlink_to(torch_home)
    assert lpips_weights() == tmp_path / "torch" / "hub" / "checkpoints" / ALEXNET.file


def test_without_the_backbone_there_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert lpips_weights() is None
    assert f"{ALEXNET.file} is not in {tmp_path}" in missing_lpips_sentence()


def test_a_file_that_is_given_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(b"weights")
    assert lpips_weights(str(tmp_path / "mine.pth")) == tmp_path / "mine.pth"


def test_a_given_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no file .*nothing\.pth"):
        lpips_weights(str(tmp_path / "nothing.pth"))


def test_lpips_of_equal_pictures_is_0(network: nn.Module, draw: Draw) -> None:
    assert lpips_distance(draw(64, 64), draw(64, 64), network) == 0


def test_lpips_grows_with_noise(network: nn.Module, draw: Draw) -> None:
    picture = draw(64, 64)
    near, far = (lpips_distance(picture, _noisy(picture, strength), network) for strength in (5, 60))
    assert near is not None
    assert far is not None
    assert 0 < near < far


@pytest.mark.parametrize(("height", "width"), [(31, 64), (64, 31), (1, 1)])
def test_lpips_of_a_picture_too_small_for_the_network_is_not_made_up(
    network: nn.Module, draw: Draw, height: int, width: int
) -> None:
    assert lpips_distance(draw(height, width), draw(height, width), network) is None


def test_the_smallest_picture_that_lpips_takes_has_a_distance(network: nn.Module, draw: Draw) -> None:
    assert lpips_distance(draw(32, 32), draw(32, 32, seed=1), network) is not None


@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")
def test_lpips_is_what_its_package_computes_from_the_same_backbone(network: nn.Module, draw: Draw) -> None:
    theirs = lpips.LPIPS(net="alex", verbose=False).eval()  # reads the backbone from TORCH_HOME by itself
    a, b = draw(64, 48), _noisy(draw(64, 48), 30)
    tensors = (torch.from_numpy(p).permute(2, 0, 1)[None].float() / 127.5 - 1 for p in (a, b))
    with torch.no_grad():
        expected = float(theirs(*tensors))
    assert lpips_distance(a, b, network) == pytest.approx(expected, rel=1e-5)


def test_the_linear_layers_of_lpips_are_those_that_its_package_ships(network: nn.Module) -> None:
    shipped = torch.load(
        Path(lpips.__file__).parent / "weights" / "v0.1" / "alex.pth", map_location="cpu", weights_only=True
    )
    loaded = network.state_dict()
    assert set(shipped) == {f"lin{i}.model.1.weight" for i in range(5)}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in shipped.items())


def test_lpips_that_trains_on_another_device_leaves_that_of_metrics_where_it_was(torch_home: Path, draw: Draw) -> None:
    path = lpips_weights()
    assert path is not None
    lpips_loss(path, "meta")  # a device that every machine has
    lpips_map(path, "meta")
    for spatial in (False, True):
        assert {p.device.type for p in load_lpips(path, spatial).parameters()} == {"cpu"}
    assert lpips_distance(draw(64, 64), draw(64, 64), load_lpips(path)) == 0


def test_lpips_is_not_trained(network: nn.Module) -> None:
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("content", ["text", "nothing", "a list", "another network", "a pickle", "a pickle by torch"])
def test_a_file_that_is_not_alexnet_is_refused_and_not_executed(tmp_path: Path, content: str) -> None:
    path, sprung = tmp_path / "wrong.pth", tmp_path / "sprung"
    if content == "text":
        path.write_text("hello")
    elif content == "nothing":
        path.write_bytes(b"")
    elif content == "a list":
        torch.save([1, 2], path)
    elif content == "another network":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    elif content == "a pickle":
        path.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save(Trap(sprung), path)
    with pytest.raises(UsageError, match=r"wrong\.pth does not hold AlexNet's weights") as caught:
        load_lpips(path)
    assert "\n" not in str(caught.value)
    assert not sprung.exists()
