from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import lpips
import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
import torch
import torchvision
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from corrdiff.errors import UsageError
from corrdiff.metrics import bits_per_pixel, lpips_distance, ms_ssim, psnr, texture_error
from corrdiff.perceptual import LPIPS_BACKBONE, load_lpips, lpips_weights, missing_lpips_sentence
from corrdiff.picture import Picture

Draw = Callable[..., Picture]


def _noisy(picture: Picture, strength: float, seed: int = 1) -> Picture:
    noise = np.random.default_rng(seed).normal(0, strength, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def test_bits_per_pixel_are_bits_over_pixels() -> None:
    assert bits_per_pixel(100, height=20, width=10) == 4.0


@pytest.mark.parametrize("strength", [1.0, 10.0, 60.0])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 33), (64, 64)])
def test_psnr_is_that_of_scikit_image(draw: Draw, height: int, width: int, strength: float) -> None:
    picture = draw(height, width)
    other = _noisy(picture, strength) ^ 1
    assert psnr(picture, other) == pytest.approx(peak_signal_noise_ratio(picture, other, data_range=255), abs=1e-9)


def test_psnr_of_equal_pictures_is_infinite(draw: Draw) -> None:
    assert psnr(draw(8, 8), draw(8, 8)) == float("inf")


def _wang(original: Picture, picture: Picture) -> float:
    """MS-SSIM as the paper defines it (Wang, Simoncelli and Bovik 2003), written out."""
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def mean(plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return scipy.signal.convolve2d(plane, window, mode="valid")

    values = []
    for x, y in zip(*(np.moveaxis(p.astype(np.float64), -1, 0) for p in (original, picture)), strict=True):
        value = 1.0
        for level, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            mx, my = mean(x), mean(y)
            vx, vy, covariance = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
            found = (2 * covariance + c2) / (vx + vy + c2)
            if level == 4:
                found = found * (2 * mx * my + c1) / (mx**2 + my**2 + c1)
            value *= float(found.mean()) ** weight
            x, y = (p.reshape(len(p) // 2, 2, -1, 2).mean((1, 3)) if level < 4 else p for p in (x, y))
        values.append(value)
    return float(np.mean(values))


@pytest.mark.parametrize("strength", [2.0, 15.0, 60.0])
def test_ms_ssim_is_that_of_its_definition(draw: Draw, strength: float) -> None:
    picture = draw(176, 208)  # even down to the coarsest scale: how odd sides are halved is no part of the definition
    noisy = _noisy(picture, strength)
    assert ms_ssim(picture, noisy) == pytest.approx(_wang(picture, noisy), abs=1e-4)


def test_ms_ssim_of_equal_pictures_is_1(draw: Draw) -> None:
    assert ms_ssim(draw(176, 161), draw(176, 161)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(160, 300), (300, 160), (1, 1)])
def test_ms_ssim_of_a_small_picture_is_not_a_number_that_is_made_up(draw: Draw, height: int, width: int) -> None:
    assert ms_ssim(draw(height, width), draw(height, width)) is None


def test_ms_ssim_falls_with_noise(draw: Draw) -> None:
    picture = draw(176, 176)
    values = [ms_ssim(picture, _noisy(picture, strength)) for strength in (1, 10, 40, 100)]
    assert values == sorted((v for v in values if v is not None), reverse=True)
    assert len(set(values)) == 4


def test_ms_ssim_does_not_care_which_picture_comes_first(draw: Draw) -> None:
    a = draw(176, 176)
    b = _noisy(a, 20)
    assert ms_ssim(a, b) == pytest.approx(ms_ssim(b, a), abs=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (17, 33), (64, 64)])
def test_texture_error_of_a_picture_with_itself_is_0(draw: Draw, height: int, width: int) -> None:
    assert texture_error(draw(height, width), draw(height, width)) == 0


def test_a_flat_picture_has_more_texture_error_than_a_noisy_one(draw: Draw) -> None:
    picture = draw(64, 64)
    flat = np.full_like(picture, picture.mean())
    assert texture_error(picture, flat) > texture_error(picture, _noisy(picture, 5))


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
    torch.save(state, home / "hub" / "checkpoints" / LPIPS_BACKBONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def network(torch_home: Path) -> nn.Module:
    path = lpips_weights()
    assert path is not None
    return load_lpips(path)


def test_the_backbone_is_found_where_torchvision_keeps_it(torch_home: Path) -> None:
    assert lpips_weights() == torch_home / "hub" / "checkpoints" / LPIPS_BACKBONE


def test_the_cache_directory_of_the_system_is_respected(
    torch_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "torch").symlink_to(torch_home)
    assert lpips_weights() == tmp_path / "torch" / "hub" / "checkpoints" / LPIPS_BACKBONE


def test_without_the_backbone_there_are_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert lpips_weights() is None
    assert f"{LPIPS_BACKBONE} is not in {tmp_path}" in missing_lpips_sentence()


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


def test_lpips_is_not_trained(network: nn.Module) -> None:
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


class _Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.sprung),)


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
        path.write_bytes(pickle.dumps(_Trap(sprung)))
    else:
        torch.save(_Trap(sprung), path)
    with pytest.raises(UsageError, match=r"wrong\.pth does not hold AlexNet's weights") as caught:
        load_lpips(path)
    assert "\n" not in str(caught.value)
    assert not sprung.exists()
