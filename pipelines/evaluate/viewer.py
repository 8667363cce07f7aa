"""What the page's viewer shows: windows of pictures, of every system at like bits, inside the page itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pipelines.evaluate.comparison import decoding_title, whole_pictures
from pipelines.evaluate.measure import Place, stem
from pipelines.evaluate.systems import System
from pipelines.evaluate.windows import RATES, WINDOW, decoded_uri, nearest_rows, original_uri
from pipelines.files import storage


def viewer(out: str, places: Sequence[Place], systems: Sequence[System], table: pd.DataFrame) -> dict[str, Any]:
    """Gather what the page's script needs to show two systems at like bits."""
    names: dict[str, None] = {}
    shown: list[dict[str, Any]] = []
    whole = set(whole_pictures(table))
    for place in places:
        if not place.shown or place.key not in whole:
            continue
        shots: dict[str, dict[str, str]] = {}
        for system in systems:
            rows = _records(table[(table["picture"] == place.key) & (table["system"] == system.name)])
            for rate in RATES:
                for curve, row in nearest_rows(rows, rate).items():
                    name = _name(system, row)
                    names[name] = None
                    window = decoded_uri(out, stem(place.key, system.name), curve, rate)
                    shots[f"{rate:g}/{name}"] = {"data": _embedded(window), "caption": _caption(row)}
        original = original_uri(out, stem(place.key, systems[0].name))
        height, width = (min(WINDOW, int(rows[0][side])) for side in ("height", "width"))
        shown.append({
            "key": place.key, "width": width, "height": height, "shots": shots,
            "original": {"data": _embedded(original), "caption": "every pixel"},
        })  # fmt: skip
    return {
        "pictures": shown, "systems": list(names), "rates": [f"{rate:g}" for rate in RATES],
        "first": _first_two(list(names), systems),
    }  # fmt: skip


def _name(system: System, row: dict[str, Any]) -> str:
    return f"{system.name}, {decoding_title(row['decoding'], row['fidelity'])}" if system.ours else system.title


def _first_two(names: Sequence[str], systems: Sequence[System]) -> list[str]:
    """What is side by side at first: a codec and another system, where there are both, else the original."""
    titles = {system.title for system in systems if not system.ours}
    ours, theirs = ([n for n in names if (n in titles) == others] for others in (False, True))
    return [*ours[:1], *theirs[: 1 if ours else 2], "original", "original"][:2]


def _caption(row: dict[str, Any]) -> str:
    psnr = "no loss" if pd.isna(row["psnr_db"]) else f"{row['psnr_db']:.1f} dB"
    return f"{row['bpp']:.3f} bpp, {psnr}, texture error {row['texture_error']:.2f}"


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _embedded(uri: str) -> str:
    return base64.b64encode(storage.read_bytes(uri)).decode()
