"""BD measures between curves, against closed forms, another package and a published example."""

from __future__ import annotations

import bjontegaard
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from corrdiff.metrics import METRICS, SET_METRICS, Metric, SetMetric
from pipelines.evaluate import comparison
from pipelines.evaluate.comparison import POINT, MetricPoints, SystemCurve, compare

NO_SETS = pd.DataFrame(columns=[*POINT, *(metric.name for metric in SET_METRICS)])


def _curve(bpp: object, psnr: object, name: str = "a") -> SystemCurve:
    rate, quality = (np.array(v, dtype=np.float64) for v in (bpp, psnr))
    if rate.ndim == 1:
        rate, quality = rate[:, None], quality[:, None]
    keys = [f"picture {i}" for i in range(rate.shape[1])]
    points = {"psnr_db": MetricPoints(rate, quality)}
    return SystemCurve(name, name, None, None, list(range(len(rate))), points, {"psnr_db": keys})


PSNR_AND_MS_SSIM = [metric for metric in METRICS if metric.name in ("psnr_db", "ms_ssim")]

BPP, PSNR = [0.1, 0.2, 0.4, 0.8], [28.0, 31.0, 34.0, 36.5]


def test_a_codec_against_itself() -> None:
    found = compare(_curve(BPP, PSNR), _curve(BPP, PSNR), "psnr_db")
    assert found.rate is not None and found.quality is not None
    assert found.rate.value == pytest.approx(0, abs=1e-9)
    assert found.quality.value == pytest.approx(0, abs=1e-9)
    assert found.overlap == 1 and found.quality_range == ("28", "36.5") and found.refusal == ""


def test_halved_bytes() -> None:
    found = compare(_curve([b / 2 for b in BPP], PSNR), _curve(BPP, PSNR), "psnr_db")
    assert found.rate is not None and found.rate.value == pytest.approx(-50, abs=1e-9)


def test_doubled_bytes_within_a_range_of_rates() -> None:
    found = compare(_curve([2 * b for b in BPP], PSNR), _curve(BPP, PSNR), "psnr_db", (0.15, 0.5))
    assert found.rate is not None and found.rate.value == pytest.approx(100, abs=1e-6)
    assert found.quality_range is not None
    low, high = map(float, found.quality_range)
    assert 28 < low < 31 < 34 < high < 36.5


def test_the_overlap_is_the_share_of_the_references_qualities_in_the_range() -> None:
    itself = compare(_curve(BPP, PSNR), _curve(BPP, PSNR), "psnr_db", (0.15, 0.5))
    assert itself.overlap == pytest.approx(1)
    upper = compare(_curve(BPP[1:], PSNR[1:]), _curve(BPP, PSNR), "psnr_db", (0.1, 0.4))
    assert upper.quality_range == ("31", "34") and upper.overlap == pytest.approx(0.5)


@pytest.mark.parametrize("bpp_range", [None, (0.1, 0.5)])
def test_a_reference_that_spends_the_same_twice_has_no_rate(bpp_range: tuple[float, float] | None) -> None:
    found = compare(_curve(BPP, PSNR), _curve([0.1, 0.4, 0.4, 0.8], PSNR), "psnr_db", bpp_range)
    assert found.rate is None and found.quality is None and found.refusal == "two points of one rate"


@pytest.mark.parametrize(
    ("reference", "other", "percent"),
    [
        (
            [(108048.8736, 43.6471), (61279.976, 40.3953), (33905.6656, 37.247), (18883.6928, 34.2911)],
            [(108061.2784, 43.6768), (61299.9936, 40.4232), (33928.7472, 37.2761), (18910.912, 34.3147)],
            -0.465215420752807,
        ),
        (
            [(40433.8848, 37.5761), (7622.7456, 35.3756), (2394.488, 33.8977), (1017.6184, 32.0603)],
            [(40370.12, 37.5982), (7587.0024, 35.4025), (2390.0944, 33.9194), (1017.0984, 32.0822)],
            -1.8779823450567612,
        ),
    ],
)
def test_published_examples(
    reference: list[tuple[float, float]], other: list[tuple[float, float]], percent: float
) -> None:
    """Of JCT-VC's reference spreadsheet, as the tests of Netflix's VMAF cite them."""
    found = compare(_curve(*zip(*other, strict=True)), _curve(*zip(*reference, strict=True)), "psnr_db")
    assert found.rate is not None and found.rate.value == pytest.approx(percent, abs=1e-2)


def test_better_pictures_at_the_same_rates() -> None:
    found = compare(_curve(BPP, [p + 0.7 for p in PSNR]), _curve(BPP, PSNR), "psnr_db")
    assert found.quality is not None and found.quality.value == pytest.approx(0.7)
    assert found.rate is not None and found.rate.value < 0


def test_curves_apart_have_no_rate() -> None:
    found = compare(_curve(BPP, [p + 20 for p in PSNR]), _curve(BPP, PSNR), "psnr_db")
    assert found.rate is None and found.overlap == 0 and found.quality_range is None
    assert found.refusal == "the curves share no qualities"
    assert found.quality is not None and found.quality.value == pytest.approx(20)


def test_a_curve_that_falls_has_no_rate() -> None:
    found = compare(_curve(BPP, [28.0, 31.0, 30.0, 36.5]), _curve(BPP, PSNR), "psnr_db")
    assert found.rate is None and found.refusal == "larger files are not better everywhere"


def test_curves_that_cross_have_no_rate_and_it_is_said_where() -> None:
    found = compare(_curve(BPP, [27.0, 30.6, 34.2, 37.2]), _curve(BPP, PSNR), "psnr_db")
    said, place = found.refusal.rsplit(" ", 1)
    assert found.rate is None and said == "the curves cross at" and float(place) == pytest.approx(33, abs=0.2)
    assert found.overlap > 0.9 and found.quality is not None


def test_a_difference_of_no_account_is_no_crossing() -> None:
    found = compare(_curve([b * f for b, f in zip(BPP, (1.002, 0.999, 1.001, 0.998), strict=True)], PSNR),
                    _curve(BPP, PSNR), "psnr_db")  # fmt: skip
    assert found.rate is not None and abs(found.rate.value) < 0.2


def test_it_is_what_another_package_computes() -> None:
    rng = np.random.default_rng(5)
    rates = qualities = 0
    for points in (2, 3, 6, 6, 6, 12):
        (a, b), (x, y) = np.sort(rng.uniform(0.1, 1, (2, points))), np.sort(rng.uniform(25, 40, (2, points)))
        one, other = (comparison.fit(_curve(bpp, psnr).points["psnr_db"]) for bpp, psnr in ((a, x), (b, y)))
        found = comparison.compare_fitted(("a", one), ("b", other), "psnr_db")
        options = {"require_matching_points": False, "min_overlap": 0.0}
        if found.rate is not None:
            theirs = bjontegaard.bd_rate(b, y, a, x, "pchip", **options)
            assert found.rate.value == pytest.approx(theirs, rel=1e-9)
            rates += 1
        if found.quality is not None:
            theirs = bjontegaard.bd_psnr(b, y, a, x, "pchip", **options)
            assert found.quality.value == pytest.approx(theirs, rel=1e-9)
            qualities += 1
    assert rates >= 2 and qualities >= 4


def _values(metric: Metric | SetMetric) -> npt.NDArray[np.float64]:
    """Some that a metric has over rising rates, in the order of its direction."""
    if metric.better == "higher":
        return np.array([0.9, 0.93, 0.96, 0.98] if metric.name == "ms_ssim" else [20.0, 30.0, 40.0, 47.0])
    return np.array([0.5, 0.3, 0.15, 0.08] if metric.better == "lower" else [0.3, 0.5, 0.7, 0.9])


@pytest.mark.parametrize("share", [0.9, 1.1])
@pytest.mark.parametrize("metric", (*METRICS, *SET_METRICS), ids=lambda metric: metric.name)
def test_planted_ten_per_cent_are_found_in_every_metric(metric: Metric | SetMetric, share: float) -> None:
    on_axis = metric.on_axis if isinstance(metric, Metric) else None

    def curve(bpp: npt.NDArray[np.float64]) -> SystemCurve:
        points = MetricPoints(bpp[:, None], _values(metric)[:, None], metric.better, on_axis)
        return SystemCurve("a", "a", None, None, [0, 1, 2, 3], {metric.name: points}, {})

    found = compare(curve(np.array(BPP) * share), curve(np.array(BPP)), metric.name)
    assert found.rate is not None and found.rate.value == pytest.approx(100 * (share - 1), abs=0.1)
    assert found.overlap == pytest.approx(1) and found.refusal == ""
    if metric.better != "one":
        assert found.quality is not None
        assert (found.quality.value > 0) == ((share < 1) == (metric.better == "higher"))


def test_less_of_what_is_bad_is_a_share_of_it() -> None:
    def curve(values: list[float]) -> SystemCurve:
        points = MetricPoints(np.array(BPP)[:, None], np.array(values)[:, None], "lower")
        return SystemCurve("a", "a", None, None, [0, 1, 2, 3], {"lpips": points}, {})

    found = compare(curve([0.4, 0.2, 0.1, 0.05]), curve([0.5, 0.25, 0.125, 0.0625]), "lpips")
    assert found.quality is not None and found.quality.value == pytest.approx(-20)
    assert found.quality_range == ("0.4", "0.0625")
    negative = compare(curve([0.4, 0.2, 0.1, -0.01]), curve([0.5, 0.25, 0.125, 0.0625]), "lpips")
    assert negative.rate is None and negative.refusal == "a value without a logarithm"


def test_pictures_that_gain_most_are_told_from_those_that_lose() -> None:
    bpp = np.repeat(np.array(BPP)[:, None], 3, 1)
    psnr = np.repeat(np.array(PSNR)[:, None], 3, 1)
    one = _curve(bpp, psnr + np.array([1.0, 0.0, -2.0]))
    assert comparison.differences(one, _curve(bpp, psnr), "psnr_db") == pytest.approx(
        {"picture 0": 1.0, "picture 1": 0.0, "picture 2": -2.0}
    )


def test_the_interval_holds_the_truth_and_shrinks_with_pictures() -> None:
    rng = np.random.default_rng(3)

    def noisy(pictures: int, factor: float) -> tuple[SystemCurve, SystemCurve]:
        scale = rng.lognormal(0, 0.3, pictures)  # pictures of different difficulty, the same for both
        luck = rng.lognormal(0, 0.1, pictures)
        bpp, psnr = np.array(BPP)[:, None] * scale, np.repeat(np.array(PSNR)[:, None], pictures, 1)
        return _curve(bpp * factor * luck, psnr, "test"), _curve(bpp, psnr, "reference")

    widths = []
    for pictures in (8, 200):
        found = compare(*noisy(pictures, 0.8), "psnr_db").rate
        assert found is not None and found.low is not None and found.high is not None
        assert found.low < found.value < found.high
        assert found.low < -20 * 1.0 + 5 and found.high > -20 - 5
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize(("pictures", "has_one"), [(1, False), (7, False), (8, True)])
def test_few_pictures_have_no_interval(pictures: int, has_one: bool) -> None:
    bpp, psnr = (np.repeat(np.array(v)[:, None], pictures, 1) for v in (BPP, PSNR))
    found = compare(_curve(bpp * 0.9, psnr), _curve(bpp, psnr), "psnr_db").rate
    assert found is not None and (found.low is not None) == (found.high is not None) == has_one


def _rows(picture: str, system: str, decoding: str | None, **other: object) -> list[dict[str, object]]:
    return [
        {"picture": picture, "system": system, "decoding": decoding, "fidelity": 1.0 if decoding else None,
         "usual_steps": True, "quality": q, "bpp": b, "psnr_db": p, "ms_ssim": 0.9, "error": None, **other}
        for q, (b, p) in enumerate(zip(BPP, PSNR, strict=True))
    ]  # fmt: skip


def test_curves_are_of_pictures_that_every_system_has() -> None:
    rows = [r for p in ("x", "y") for s, d in (("jpeg", None), ("ours", "corrected")) for r in _rows(p, s, d)]
    rows += [*_rows("z", "jpeg", None), {"picture": "z", "system": "ours", "error": "too large"}]
    table = pd.DataFrame(rows)
    assert comparison.whole_pictures(table) == ["x", "y"]
    jpeg, ours = comparison.curves(table, NO_SETS, {"jpeg": "JPEG"}, PSNR_AND_MS_SSIM)
    assert (jpeg.name, ours.name) == ("JPEG", "ours, fidelity 1")
    assert jpeg.points["psnr_db"].bpp_PN.shape == (4, 2) and jpeg.decoding is None and ours.fidelity == 1.0
    assert ours.points["psnr_db"].value.tolist() == PSNR


def test_a_picture_that_lacks_a_metric_is_left_out_of_that_metric_alone_in_every_curve() -> None:
    rows = [r for p in ("x", "y") for s in ("jpeg", "webp") for r in _rows(p, s, None)]
    small = [*_rows("small", "jpeg", None, ms_ssim=None), *_rows("small", "webp", None, ms_ssim=None)]
    lossless = [*_rows("lossless", "jpeg", None), *_rows("lossless", "webp", None)]
    lossless[-1]["psnr_db"] = None
    table = pd.DataFrame([*rows, *small, *lossless])
    for curve in comparison.curves(table, NO_SETS, {"jpeg": "JPEG", "webp": "WebP"}, PSNR_AND_MS_SSIM):
        assert {m: p.bpp_PN.shape for m, p in curve.points.items()} == {"psnr_db": (4, 3), "ms_ssim": (4, 3)}
    assert comparison.pictures_with(table, "psnr_db") == ["x", "y", "small"]
    assert comparison.pictures_with(table, "ms_ssim") == ["x", "y", "lossless"]


def test_a_metric_that_no_picture_has_has_no_curve() -> None:
    (jpeg,) = comparison.curves(
        pd.DataFrame(_rows("x", "jpeg", None, ms_ssim=None)), NO_SETS, {"jpeg": "JPEG"}, PSNR_AND_MS_SSIM
    )
    assert set(jpeg.points) == {"psnr_db"}


def test_a_metric_of_sets_is_one_number_a_point() -> None:
    (wasserstein,) = (metric for metric in SET_METRICS if metric.name == "sliced_wasserstein")
    table = pd.DataFrame([r for p in ("x", "y") for s, d in (("jpeg", None), ("ours", "corrected"))
                          for r in _rows(p, s, d)])  # fmt: skip
    sets = table[table["picture"] == "x"][list(POINT)].assign(sliced_wasserstein=[0.4, 0.3, 0.2, 0.1] * 2)
    sets = sets.sample(frac=1, random_state=1)
    jpeg, ours = comparison.curves(table, sets, {"jpeg": "JPEG"}, [*PSNR_AND_MS_SSIM, wasserstein])
    for curve in (jpeg, ours):
        points = curve.points["sliced_wasserstein"]
        assert points.value.tolist() == [0.4, 0.3, 0.2, 0.1] and points.bpp.tolist() == BPP
    found = compare(ours, jpeg, "sliced_wasserstein")
    assert found.rate is not None and found.rate.value == pytest.approx(0) and found.rate.low is None


COVERED = 1000
PICTURES = 24
TRUE_FACTOR = 0.85


def _drawn(rng: np.random.Generator, pictures: int) -> tuple[SystemCurve, SystemCurve]:
    """Pictures of unlike difficulty; of each a codec saves more or less than it does in the mean."""
    hard = rng.lognormal(0, 0.5, pictures)
    bpp = np.array(BPP)[:, None] * hard
    psnr = np.array(PSNR)[:, None] - 3 * np.log(hard) + rng.normal(0, 1.0, pictures)
    luck = TRUE_FACTOR * rng.lognormal(0, 0.12, pictures)
    return _curve(bpp * luck, psnr + rng.normal(0, 0.3, pictures), "test"), _curve(bpp, psnr, "reference")


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    truth = _of_means(*_drawn(np.random.default_rng(11), 200_000))
    rng = np.random.default_rng(12)
    held = 0
    for _ in range(COVERED):
        found = compare(*_drawn(rng, PICTURES), "psnr_db").rate
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
    assert 0.93 <= held / COVERED <= 0.97, held


def _of_means(one: SystemCurve, other: SystemCurve) -> float:
    """The BD-rate of the mean curves of all pictures, without an interval."""
    means = [_curve(c.points["psnr_db"].bpp, c.points["psnr_db"].value) for c in (one, other)]
    found = compare(*means, "psnr_db").rate
    assert found is not None
    return found.value
