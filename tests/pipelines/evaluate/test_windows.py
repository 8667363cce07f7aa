"""Which decoded pictures the page shows, and what of them."""

from __future__ import annotations

from pipelines.evaluate.windows import RATES, nearest_rows


def _row(bpp: float, **other: object) -> dict[str, object]:
    return {"bpp": bpp, "decoding": None, "usual_steps": True, "fidelity": None, **other}


def test_what_is_shown_is_the_nearest_rate_that_is_near_enough() -> None:
    rows = [_row(0.05), _row(0.095), _row(0.11), _row(0.3)]
    assert {rate: found["anchor"]["bpp"] for rate in RATES if (found := nearest_rows(rows, rate))} == {
        0.1: 0.095, 0.4: 0.3,
    }  # fmt: skip


def test_each_way_to_decode_is_a_curve_and_other_numbers_of_steps_are_none() -> None:
    rows = [
        _row(0.1, decoding="corrected", fidelity=0.5), _row(0.1, decoding="privileged", fidelity=1.0),
        _row(0.1, decoding="corrected", fidelity=0.25, usual_steps=False),
    ]  # fmt: skip
    assert nearest_rows(rows, 0.1).keys() == {"fidelity-0.5", "privileged"}
