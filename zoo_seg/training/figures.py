"""What a run leaves to look at: the curve of loss and mIoU, and a sheet of images, labels and predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from zoo_seg.data.layouts import SegmentationData
from zoo_seg.data.samples import Sample
from zoo_seg.evaluation.canvas import new_figure, save
from zoo_seg.evaluation.sheet import Row, draw_rows
from zoo_seg.model import SegmentationModel


def draw_curve(log: Path, path: Path) -> None:
    """The loss of every line and the mIoU of every validation of a `log.jsonl`, over the epochs, as a PNG."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    epochs = [line for line in lines if "mIoU" in line]
    steps = [line for line in lines if "mIoU" not in line]
    best = max(epochs, key=lambda line: line["mIoU"])
    steps_per_epoch = epochs[0]["step"] / epochs[0]["epoch"]
    marker = "." if len(epochs) < 30 else None

    figure = new_figure(8, 4.5)
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
    save(figure, path)


def draw_sheet(model: SegmentationModel, data: SegmentationData, path: Path, rows: int = 6) -> None:
    """Image, label and prediction of a few samples spread over the val split, side by side, as a PNG."""
    samples = data.samples("val")
    places = np.linspace(0, len(samples) - 1, min(rows, len(samples))).astype(int)
    shown = [_look(samples[place], data, model) for place in places]
    draw_rows(shown, data.classes, data.palette, "image of val", path)


def _look(sample: Sample, data: SegmentationData, model: SegmentationModel) -> Row:
    stored, ids = data.pair(sample)
    found, labels = model.predict(stored, range=data.range, bands=data.bands), ids.astype(np.int64)
    assert found.image is not None  # `predict` keeps it
    return Row(found.image, np.where(labels == data.ignore_index, data.num_classes, labels), found.mask)
