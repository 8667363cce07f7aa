from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.compress import finish
from pipelines.compress.write import write_unit
from pipelines.dataset.format import Plan, columns
from tests.support.compression import coded


def test_units_of_before_whose_qualities_are_whole_numbers_make_one_table_with_those_of_now(tmp_path: Path) -> None:
    now, out = columns(), str(tmp_path)
    before = now.set(now.get_field_index("quality"), pa.field("quality", pa.int8()))
    for unit, (schema, quality) in enumerate(((before, 4), (now, 4.0), (now, 4.0625))):
        done = coded(0, b"file", key=f"k{unit}")
        done.row.update(quality=quality, psnr_db=30.0, bpp=0.1)
        write_unit(out, unit, [done], {}, schema)
    summary, shown = finish._finish(out, Plan({"codec": "c"}, "_plan/1", units=3, pictures=3))
    assert summary.qualities == {"4": 2, "4.0625": 1}
    assert sorted(row["quality"] for row in shown.worst) == [4.0, 4.0, 4.0625]
    assert summary.percentiles["psnr_db"]["mean"] == pytest.approx(30.0)
