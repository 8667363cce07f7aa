from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch

from corrdiff.format.noise import format_noise, philox4x32


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, words: str) -> None:
    given = [np.uint64(int(w, 16)) for w in f"{counter} {key}".split()]
    assert [f"{w:08x}" for w in philox4x32(*given)] == words.split()


@pytest.mark.parametrize(
    ("top", "left", "height", "width"), [(0, 0, 40, 56), (0, 0, 1, 1), (3, 5, 7, 9), (8, 8, 16, 8), (39, 55, 1, 1)]
)
def test_noise_of_a_window_is_that_part_of_the_whole(top: int, left: int, height: int, width: int) -> None:
    whole = format_noise(40, 56)
    window = format_noise(height, width, top, left)
    assert torch.equal(window, whole[:, top : top + height, left : left + width])


def _scalar_noise(x: int, y: int, channel: int) -> float:
    """One value, in plain Python, as the format describes it."""
    c, k = [x // 8, y, channel, 0], [0x43525244, 0x49464631]
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    lane = x % 8
    number = c[lane // 2] >> 16 * (lane % 2) & 0xFFFF
    return round(4096 * statistics.NormalDist().inv_cdf((number + 0.5) / 65536)) / 4096


@pytest.mark.parametrize(("x", "y", "channel"), [(0, 0, 0), (7, 0, 1), (8, 3, 2), (100_003, 65_537, 0), (13, 999, 2)])
def test_a_value_of_the_noise_is_the_one_that_the_format_defines(x: int, y: int, channel: int) -> None:
    assert float(format_noise(1, 1, top=y, left=x)[channel, 0, 0]) == _scalar_noise(x, y, channel)


def test_noise_is_standard_normal() -> None:
    noise = format_noise(256, 256).double().flatten()
    count = len(noise)
    moments = [float((noise**p).mean()) for p in (1, 2, 3, 4)]
    # Standard errors of the first four moments of a normal sample; five of them hardly ever happen.
    bounds = [5 * (v / count) ** 0.5 for v in (1, 2, 15, 96)]
    assert all(
        abs(found - true) < bound for found, true, bound in zip(moments, (0.0, 1.0, 0.0, 3.0), bounds, strict=True)
    )


@pytest.mark.parametrize(("channel", "dy", "dx"), [(0, 0, 1), (0, 0, 8), (0, 1, 0), (1, 0, 0), (2, 0, 0)])
def test_neighbouring_noise_is_independent(channel: int, dy: int, dx: int) -> None:
    noise = format_noise(264, 264)
    a, b = noise[0, :256, :256], noise[channel, dy : dy + 256, dx : dx + 256]
    assert abs(float((a * b).mean())) < 5 / 256
