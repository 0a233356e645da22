"""Images beside their labels and predictions, on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zoo_seg.data.labels import Colour
from zoo_seg.evaluation.canvas import Patch, new_figure, save, short

_WIDTH = 3.2
"""Inches of one image."""
_NAMED = 24
"""Classes that the legend names, the largest ones."""
_IGNORED = (255, 255, 255)


class Row(NamedTuple):
    """An image, and the class ids of its label and of its prediction; what is ignored comes after the classes."""

    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.integer]
    prediction: npt.NDArray[np.integer]
    title: str = ""


def draw_rows(rows: Sequence[Row], classes: Sequence[str], palette: Sequence[Colour], what: str, path: Path) -> None:
    """A PNG of three columns; `what` is written above the images."""
    heights = [_WIDTH * row.image.shape[0] / row.image.shape[1] for row in rows]
    figure = new_figure(3 * _WIDTH, sum(heights) + 1)
    grid = figure.subplots(len(rows), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    colours = np.array([*palette, _IGNORED], np.uint8)
    for cells, row in zip(grid, rows, strict=True):
        for axes, image in zip(cells, (row.image, colours[row.label], colours[row.prediction]), strict=True):
            axes.imshow(image, interpolation="nearest" if image is not row.image else None)
            axes.set_xticks([])
            axes.set_yticks([])
        cells[0].set_ylabel(row.title, fontsize=8)
    for axes, title in zip(grid[0], (what, "label", "prediction"), strict=True):
        axes.set_title(title)
    shown = [ids.ravel() for row in rows for ids in (row.label, row.prediction)]
    pixels = np.bincount(np.concatenate(shown), minlength=len(colours))
    named = sorted(np.argsort(-pixels, kind="stable")[: min(_NAMED, int((pixels > 0).sum()))])
    names = [*map(short, classes), "ignored"]
    patches = [Patch(facecolor=colours[each] / 255, edgecolor="0.5", label=names[each]) for each in named]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=9, frameon=False)
    save(figure, path)
