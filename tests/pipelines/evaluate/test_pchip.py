"""PCHIP of many curves at once is SciPy's of each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from pipelines.evaluate.pchip import pchip


@pytest.mark.parametrize("points", [2, 3, 5, 12])
@pytest.mark.parametrize("kind", ["rising", "any", "flat in places"])
def test_values_and_means_are_those_of_scipy(points: int, kind: str) -> None:
    rng = np.random.default_rng(points)
    x_DP, y_DP = np.sort(rng.uniform(-3, 3, (40, points))), rng.normal(0, 2, (40, points))
    if kind == "rising":
        y_DP = np.sort(y_DP)
    elif kind == "flat in places":
        y_DP = np.round(y_DP)
    curves = pchip(x_DP, y_DP)
    ends = np.sort(rng.uniform(x_DP[:, :1], x_DP[:, -1:], (40, 2)))
    ends[:5], ends[5:9, 0] = x_DP[:5, [0, -1]], x_DP[5:9, 0]
    theirs = [PchipInterpolator(x, y) for x, y in zip(x_DP, y_DP, strict=True)]
    for place_D in ends.T:
        expected = [curve(place) for curve, place in zip(theirs, place_D, strict=True)]
        np.testing.assert_allclose(curves.at(place_D), expected, rtol=1e-9, atol=1e-9)
    means = [curve.integrate(low, high) / (high - low) for curve, (low, high) in zip(theirs, ends, strict=True)]
    np.testing.assert_allclose(curves.mean(*ends.T), means, rtol=1e-8, atol=1e-9)
    np.testing.assert_array_equal((curves.starts, curves.ends), x_DP[:, [0, -1]].T)
