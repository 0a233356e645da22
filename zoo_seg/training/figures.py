"""What a run leaves to look at: the curve of loss and mIoU, and a sheet of images, labels and predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoo_seg.data.layouts import SegmentationData
from zoo_seg.data.samples import Sample
from zoo_seg.errors import MissingExtraError
from zoo_seg.hub.files import replacing
from zoo_seg.model import SegmentationModel

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator
except ImportError:
    raise MissingExtraError("training needs more (matplotlib is missing): pip install 'zoo_seg[train]'") from None

_WIDTH = 3.2
"""Inches of one image on the sheet."""
_NAMED = 24
"""Classes that the sheet's legend names, the largest ones."""
_IGNORED = (255, 255, 255)

RGB = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.integer]


def draw_curve(log: Path, path: Path) -> None:
    """The loss of every line and the mIoU of every validation of a `log.jsonl`, over the epochs, as a PNG."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    epochs = [line for line in lines if "mIoU" in line]
    steps = [line for line in lines if "mIoU" not in line]
    best = max(epochs, key=lambda line: line["mIoU"])
    steps_per_epoch = epochs[0]["step"] / epochs[0]["epoch"]
    marker = "." if len(epochs) < 30 else None

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    left.plot([line["step"] / steps_per_epoch for line in steps], [line["loss"] for line in steps], color="0.8")
    left.plot([line["epoch"] for line in epochs], [line["loss"] for line in epochs], color="tab:blue", marker=marker)
    left.set_xlabel("epoch")
    left.set_xlim(0, epochs[-1]["epoch"])
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("loss on train", color="tab:blue")
    left.set_ylim(bottom=0)
    left.grid(alpha=0.3)
    right = left.twinx()
    right.plot([line["epoch"] for line in epochs], [line["mIoU"] for line in epochs], color="tab:orange", marker=marker)
    right.plot(best["epoch"], best["mIoU"], "o", color="tab:orange", clip_on=False)
    right.set_ylabel("mIoU on val (%)", color="tab:orange")
    right.set_ylim(0, min(max(1.25 * best["mIoU"], 1), 100))
    figure.suptitle(f"best mIoU on val: {best['mIoU']:.2f} % after epoch {best['epoch']}", fontsize=11)
    _save(figure, path)


def draw_sheet(model: SegmentationModel, data: SegmentationData, path: Path, rows: int = 6) -> None:
    """Image, label and prediction of a few samples spread over the val split, side by side, as a PNG."""
    samples = data.samples("val")
    places = np.linspace(0, len(samples) - 1, min(rows, len(samples))).astype(int)
    shown = [_look(samples[place], data, model) for place in places]
    heights = [_WIDTH * rgb.shape[0] / rgb.shape[1] for rgb, _, _ in shown]

    figure = Figure(figsize=(3 * _WIDTH, sum(heights) + 1), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(shown), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    colours = np.array([*data.palette, _IGNORED], np.uint8)
    for row, (rgb, labels, predicted) in zip(grid, shown, strict=True):
        for axes, image in zip(row, (rgb, colours[labels], colours[predicted]), strict=True):
            axes.imshow(image, interpolation="nearest" if image is not rgb else None)
            axes.set_xticks([])
            axes.set_yticks([])
    for axes, title in zip(grid[0], ("image of val", "label", "prediction"), strict=True):
        axes.set_title(title)
    pixels = np.bincount(np.concatenate([ids.ravel() for _, *both in shown for ids in both]), minlength=len(colours))
    named = sorted(np.argsort(-pixels, kind="stable")[: min(_NAMED, int((pixels > 0).sum()))])
    names = [*data.classes, "ignored"]
    patches = [Patch(facecolor=colours[each] / 255, edgecolor="0.5", label=names[each]) for each in named]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=9, frameon=False)
    _save(figure, path)


def _look(sample: Sample, data: SegmentationData, model: SegmentationModel) -> tuple[RGB, Ids, Ids]:
    """The image, and the class ids of its label and its prediction; what is ignored comes after the classes."""
    found = model.predict(sample.image, range=data.range, bands=data.bands)
    labels = data.read_labels(sample).astype(np.int64)
    assert found.image is not None  # `predict` keeps it
    return found.image, np.where(labels == data.ignore_index, data.num_classes, labels), found.mask


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
