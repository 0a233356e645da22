"""The details of a measurement as files: confusion matrix, scores of each image, and the worst images."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoo_seg.data.layouts import SegmentationData
from zoo_seg.evaluation.canvas import new_figure, save, short
from zoo_seg.evaluation.details import CONFUSION, IMAGES, MATRIX, WORST, Details, coarse
from zoo_seg.evaluation.sheet import Row, draw_rows
from zoo_seg.hub.files import replacing
from zoo_seg.images.reading import as_rgb

_MOST_NUMBERS = 30
"""Classes up to which a cell of the matrix has room for its number."""
_SMALLEST = 3.5
"""Points of a name beside the matrix."""


def write_details(details: Details, data: SegmentationData, split: str, folder: Path) -> list[Path]:
    """Write `confusion.csv`, `confusion.png`, `images.csv` and `worst.png` into a folder; return what was written.

    The matrix is left out where there are more than 1024 classes, and the sheet where every pixel is ignored.
    """
    written = [folder / IMAGES]
    _write_images(details, data.classes, folder / IMAGES)
    if details.confusion is not None:
        _write_confusion(details.confusion, data.classes, folder / CONFUSION)
        draw_confusion(details.confusion, data.classes, folder / MATRIX)
        written = [folder / CONFUSION, folder / MATRIX, *written]
    if details.worst:
        draw_worst(details, data, split, folder / WORST)
        written.append(folder / WORST)
    return written


def _write_confusion(confusion: npt.NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Pixels; a row is a class of the labels, a column one of the predictions."""
    rows = ([name, *map(int, row)] for name, row in zip(classes, confusion, strict=True))
    _write(path, [["label \\ prediction", *classes], *rows])


def _write_images(details: Details, classes: Sequence[str], path: Path) -> None:
    """In the order of the data set; a score is empty where every pixel is ignored."""
    rows = (
        [
            each.name,
            _percent(each.miou),
            _percent(each.aacc),
            each.pixels,
            "" if each.worst_class is None else classes[each.worst_class],
            _percent(each.worst_iou),
        ]
        for each in details.images
    )
    _write(path, [["image", "mIoU", "aAcc", "pixels", "worst class", "its IoU"], *rows])


def _percent(value: float) -> str:
    return "" if value != value else f"{value:.4f}"


def _write(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def draw_confusion(confusion: npt.NDArray[np.int64], classes: Sequence[str], path: Path) -> None:
    """Each class of the labels as a row: how many percent of its pixels were predicted as which."""
    count = len(classes)
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.full(confusion.shape, np.nan)
    np.divide(100 * confusion, totals, out=shares, where=totals > 0)
    cell = 0.42 if count <= _MOST_NUMBERS else max(0.03, min(0.2, 20 / count))
    size, text = 2 + cell * count, min(8, 50 * cell)
    figure = new_figure(size + 1.2, size)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="% of the label's pixels", shrink=0.5, aspect=30, pad=0.01)
    if text >= _SMALLEST:  # else matplotlib numbers some of them
        names = [short(name) for name in classes]
        axes.set_xticks(range(count), names, rotation=90, fontsize=text)
        axes.set_yticks(range(count), names, fontsize=text)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    if count <= _MOST_NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:  # NaN is not
                colour = "white" if share > 60 else "black"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    save(figure, path)


def draw_worst(details: Details, data: SegmentationData, split: str, path: Path) -> None:
    """The images of the lowest mIoU beside their labels, lowest first."""
    samples = data.samples(split)
    rows = []
    for score, prediction in details.worst:
        stored, label = data.pair(samples[score.index])
        image, ids = coarse(as_rgb(data.read_image(stored))), coarse(label).astype(np.int64)
        ignored = np.where(ids == data.ignore_index, data.num_classes, ids)
        name = score.name if len(score.name) <= 24 else f"...{score.name[-21:]}"
        rows.append(Row(image, ignored, prediction, f"{name}\nmIoU {score.miou:.1f} %"))
    draw_rows(rows, data.classes, data.palette, f"worst of {split}", path)
