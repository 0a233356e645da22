"""The IoU of every class as a bar chart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from zoo_seg.evaluation.canvas import new_figure, save, short
from zoo_seg.evaluation.measure import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_ROWS = 50
"""Classes below each other; more stand in further columns."""

Bar = tuple[str, float, tuple[float, ...]]
"""Name, IoU in percent (NaN: absent), colour."""


def draw_chart(measurement: Measurement, palette: tuple[tuple[int, int, int], ...], title: str, path: Path) -> None:
    """Write a PNG: one bar a class in its colour, best first, with the mean as a line."""
    colours = [tuple(channel / 255 for channel in colour) for colour in palette]
    bars = list(zip(measurement.classes, measurement.per_class["IoU"].tolist(), colours, strict=True))
    bars.sort(key=lambda bar: -bar[1] if bar[1] == bar[1] else math.inf)
    columns = -(-len(bars) // _MOST_ROWS)
    rows = -(-len(bars) // columns)
    figure = new_figure(6 * columns, 1.1 + 0.21 * rows)
    figure.suptitle(title, fontsize=10)
    for column, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        _draw(axes, bars[column * rows : (column + 1) * rows], rows, measurement.scores["mIoU"])
    save(figure, path)


def _draw(axes: Axes, bars: list[Bar], rows: int, mean: float) -> None:
    names, ious, colours = zip(*bars, strict=True)
    places = range(len(bars))
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # keeps the line off the numbers
    heights = [0 if math.isnan(iou) else iou for iou in ious]
    axes.barh(places, heights, color=colours, edgecolor="0.4", linewidth=0.6, height=0.75)
    for place, iou in zip(places, ious, strict=True):
        if math.isnan(iou):
            axes.text(1, place, "absent", va="center", fontsize=8, color="0.5")
        else:
            axes.text(iou + 1, place, f"{iou:.1f}", va="center", fontsize=8, bbox=behind)
    axes.axvline(mean, color="0.3", linestyle="--", linewidth=1, zorder=0)
    axes.set_yticks(places, [short(name) for name in names], fontsize=8)
    axes.set_ylim(rows - 0.5, -0.5)  # the best on top; bars of one thickness in every column
    axes.set_xlim(0, 108)
    axes.set_xlabel("IoU (%), dashed: mean")
    axes.spines[["top", "right"]].set_visible(False)
