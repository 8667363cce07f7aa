"""Curves, drawn the same way in training, in MLflow and in a report."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from corrdiff.metrics import METRICS, SET_METRICS

if TYPE_CHECKING:  # it takes a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABELS = (
    {"bpp": "bits a pixel"}
    | {metric.name: metric.axis or metric.title for metric in METRICS}
    | {metric.name: metric.title for metric in SET_METRICS}
)

OURS = ("#d62728", "#ff7f0e", "#9467bd", "#e377c2", "#8c564b", "#bcbd22")

_SVG = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Line:
    """The points of a curve, and how it is drawn."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    color: str
    tips: Sequence[str] = ()
    """What each point says under the mouse."""
    dashed: bool = False
    faint: bool = False
    """An earlier state of the line of that name; it is not in the legend."""


def label(name: str) -> str:
    """The title of an axis: of the rate, of a metric, else the name itself."""
    return _LABELS.get(name, name)


def draw(panels: Sequence[tuple[str, str, Sequence[Line]]], width: float = 4.6, legend: bool = True) -> Figure:
    """Draw panels side by side; each has the name of what is on x, of what is on y, and lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * len(panels), 3.6), layout="constrained")
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (x, y, lines) in zip(drawn, panels, strict=True):
        _draw(axes, x, y, lines)
    if legend:
        handles, names = drawn[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(4, max(1, len(names))), fontsize=8)
    return figure


def _draw(axes: Axes, x: str, y: str, lines: Sequence[Line]) -> None:
    for i, line in enumerate(lines):
        axes.plot(
            line.x, line.y, marker="o", markersize=2 if line.faint else 4, linewidth=0.8 if line.faint else 1.6,
            linestyle="--" if line.dashed else "-", color=line.color, alpha=0.25 if line.faint else 1.0,
            label=None if line.faint else line.name, gid=f"line-{i}",
        )  # fmt: skip
    axes.set(xlabel=label(x), ylabel=label(y))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def svg(x: str, y: str, lines: Sequence[Line]) -> str:
    """Draw one panel as an element of a page.

    Each line is a group with `data-line`, each point has its number, `data-point`, and says its tip. What is black has
    the colour of the text around it.
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{x}-{y}", "font.family": "sans-serif"}):
        draw([(x, y, lines)], width=5.6, legend=False).savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True
        )
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ET.fromstring(buffer.getvalue())
    metadata = root.find(f"{{{_SVG}}}metadata")
    if metadata is not None:
        root.remove(metadata)
    groups = {g.get("id", ""): g for g in root.iter(f"{{{_SVG}}}g")}
    for i, line in enumerate(lines):
        group = groups[f"line-{i}"]
        del group.attrib["id"]  # a page has many charts
        group.set("data-line", line.name)
        for number, (mark, tip) in enumerate(zip(group.iter(f"{{{_SVG}}}use"), line.tips, strict=False)):
            mark.set("data-point", str(number))
            ET.SubElement(mark, f"{{{_SVG}}}title").text = tip
    for text in root.iter(f"{{{_SVG}}}text"):
        text.set("fill", "currentColor")
    return ET.tostring(root, encoding="unicode").replace("#000000", "currentColor")
