from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.signal
from skimage.metrics import peak_signal_noise_ratio

from corrdiff import metrics
from corrdiff.metrics import (
    METRICS,
    SAMPLINGS,
    SET_METRICS,
    bits_per_pixel,
    color_video_vdp,
    ms_ssim,
    psnr,
    texture_error,
)  # fmt: skip
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


def test_color_video_vdp_is_10_jod_where_nothing_is_seen_and_falls_with_noise(draw: Draw) -> None:
    pytest.importorskip("pycvvdp", reason="the extra `perception` is not installed")
    picture = draw(96, 128)
    values = [color_video_vdp(picture, _noisy(picture, strength)) for strength in (0, 5, 20, 80)]
    assert values[0] == 10
    assert values == sorted((v for v in values if v is not None), reverse=True) and len(set(values)) == 4
    assert color_video_vdp(picture, _noisy(picture, 5)) == values[1]  # whatever came between


def test_color_video_vdp_of_a_huge_picture_is_absent_before_memory_is_taken() -> None:
    huge = np.broadcast_to(np.uint8(0), (1 << 20, 1 << 20, 3))
    assert color_video_vdp(huge, huge) is None
    assert color_video_vdp(huge[:1, :9], huge[:1, :9]) is None


def test_a_metric_whose_package_is_not_installed_is_absent_and_says_so(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cvvdp,) = (metric for metric in METRICS if metric.name == "cvvdp")
    monkeypatch.setattr(metrics, "version_of", lambda library: None)
    assert cvvdp.measure(draw(64, 64), draw(64, 64), {}) is None
    assert metrics.missing(cvvdp) == "the package cvvdp is not installed (the extra `perception` has it)"


def test_a_metric_whose_network_is_not_at_hand_is_absent_and_says_which_file_is_missing(
    draw: Draw, tmp_path: Path
) -> None:
    needing = [metric for metric in METRICS if metric.network is not None]
    assert [metric.name for metric in needing] == ["lpips", "lpips_vgg", "dists"]
    for metric in needing:
        assert metric.measure(draw(64, 64), draw(64, 64), {}) is None
    said = metrics.missing(needing[0], str(tmp_path))
    assert said == f"the file alexnet-owt-7be5be79.pth is not in {tmp_path} (put it there to have it)"
    assert metrics.load_networks(str(tmp_path)) == {}


def test_what_needs_neither_network_nor_package_is_never_missing(tmp_path: Path) -> None:
    absent = {metric.name for metric in (*METRICS, *SET_METRICS) if metrics.missing(metric, str(tmp_path))}
    assert absent - {"cvvdp"} == {"lpips", "lpips_vgg", "dists", "fid", "kid"}


def test_the_tables_name_each_measure_once() -> None:
    names = [metric.name for metric in (*METRICS, *SET_METRICS)]
    assert len(names) == len(set(names))


def test_a_measure_of_sets_is_made_from_what_is_kept_of_each_picture(draw: Draw) -> None:
    originals = [draw(32, 48, seed) for seed in range(3)]
    pictures = [_noisy(p, 30) for p in originals]
    (wasserstein,) = (metric for metric in SET_METRICS if metric.name == "sliced_wasserstein")
    sampling = SAMPLINGS[wasserstein.sampling]
    kept = [[sampling(p, i, 3, {}) for i, p in enumerate(one)] for one in (originals, pictures)]
    assert wasserstein.distance(kept[0], kept[0]) == 0
    expected = metrics.sliced_wasserstein.sliced_wasserstein(originals, pictures)
    assert wasserstein.distance(*kept) == pytest.approx(expected, abs=1e-3)  # kept in 16 bits


def test_without_its_network_nothing_is_kept_for_a_metric_and_it_is_absent(draw: Draw) -> None:
    for metric in SET_METRICS:
        if metric.network is not None:
            assert SAMPLINGS[metric.sampling](draw(300, 300), 0, 1, {}) == []
            assert metric.distance([[], []], [[], []]) is None
