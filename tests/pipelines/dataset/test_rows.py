"""What is sorted and counted on the disk is what it would be in memory."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.dataset.format import columns, metric_columns
from pipelines.dataset.rows import Rows
from pipelines.dataset.summary import PERCENTILES

SCHEMA = columns()


def _table(number: int, seed: int = 0) -> pa.Table:
    """Rows in no order, a tenth of them failures, some without MS-SSIM."""
    draw = np.random.default_rng(seed)
    failed = draw.random(number) < 0.1
    keys = [f"{k:x}" for k in draw.permutation(number) * 7919]
    values = {
        "key": keys, "source": [f"/in/{k}" for k in keys], "width": draw.integers(1, 9999, number).astype(np.int32),
        "height": draw.integers(1, 9999, number).astype(np.int32), "bytes": draw.integers(1, 1 << 40, number),
        "quality": draw.integers(0, 113, number) / 16, "status": np.where(failed, "failed", "ok"),
        "error": [f"line {i} is broken" if f else None for i, f in enumerate(failed)], "part": ["part-0"] * number,
        "offset": draw.integers(0, 1 << 40, number),
        "bpp": draw.random(number), "psnr_db": draw.normal(30, 4, number).round(2),
        "ms_ssim": [None if u < 0.3 else u for u in draw.random(number)],
    }  # fmt: skip
    named = {f.name: values.get(f.name, pa.nulls(number, f.type)) for f in SCHEMA}
    return pa.table({n: pa.array(v, SCHEMA.field(n).type) for n, v in named.items()}, schema=SCHEMA)


@pytest.mark.parametrize("number", [0, 1, 2, 1000, 300_000])
def test_what_is_said_of_many_rows_is_what_numpy_says(tmp_path: Path, number: int) -> None:
    table = _table(number)
    with contextlib.closing(Rows(str(tmp_path))) as rows:
        for first in range(0, number, 17_001):
            rows.add(table.slice(first, 17_001))
        good = table.filter(pa.compute.equal(table["status"], "ok"))
        assert rows.counted() == (len(good), number - len(good))

        percentiles = rows.percentiles()
        for name in metric_columns():
            values = good[name].drop_null().to_numpy()
            assert (name in percentiles) == bool(len(values))
            if len(values):
                assert percentiles[name]["mean"] == pytest.approx(values.mean())
                found = [percentiles[name][f"p{p}"] for p in PERCENTILES]
                assert found == pytest.approx(np.percentile(values, PERCENTILES).tolist(), rel=1e-12)

        index = pa.concat_tables([pa.Table.from_batches([b]) for b in rows.index(1 << 14)] or [SCHEMA.empty_table()])
        assert index["key"].to_pylist() == sorted(good["key"].to_pylist())
        places = dict(zip(good["key"].to_pylist(), good["offset"].to_pylist(), strict=True))
        assert index["offset"].to_pylist() == [places[key] for key in index["key"].to_pylist()]

        assert rows.failure_reasons() == ({"line N is broken": number - len(good)} if number > len(good) else {})
        counted = Counter(f"{q:g}" for q in good["quality"].to_pylist())
        assert list(rows.qualities().items()) == sorted(counted.items(), key=lambda c: (-c[1], c[0]))

        spread = rows.spread(500)
        places_shown = np.linspace(0, max(len(good) - 1, 0), min(len(good), 500)).astype(np.int64)
        assert set(spread) == {n for n in metric_columns() if len(good) and good[n].null_count < len(good)}
        if "psnr_db" in spread:
            assert spread["psnr_db"].tolist() == good["psnr_db"].take(places_shown).to_pylist()

        small = [r for r in good.to_pylist() if r["width"] * r["height"] <= 1 << 22] if number <= 1000 else []
        if small:
            assert rows.worst(4, 1 << 22) == sorted(small, key=lambda r: r["psnr_db"])[:4]
        first = table.filter(pa.compute.equal(table["status"], "failed")).select(["key", "source", "error"])
        assert rows.failures(5) == first.slice(0, 5).to_pylist()


def test_older_tables_have_other_columns_and_types(tmp_path: Path) -> None:
    before = _table(10).drop_columns(["ms_ssim"]).append_column("lost", pa.array(range(10)))
    at = before.schema.get_field_index("quality")
    before = before.set_column(at, "quality", pa.array([4] * 10, pa.int8()))
    with contextlib.closing(Rows(str(tmp_path))) as rows:
        rows.add(before)
        assert list(rows.qualities()) == ["4"]
        assert "ms_ssim" not in rows.percentiles()
