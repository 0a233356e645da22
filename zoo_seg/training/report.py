"""What a run leaves to look at: the curve of loss and mIoU, and a sheet of pictures, labels and predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from zoo_seg.data.layouts import SegmentationData
from zoo_seg.errors import MissingExtraError
from zoo_seg.inference.picture import read_picture
from zoo_seg.inference.segmentation import Segmentation
from zoo_seg.model import SegmentationModel

try:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
except ImportError:
    raise MissingExtraError("training needs more (matplotlib is missing): pip install 'zoo_seg[train]'") from None

_WIDTH = 320
"""Pixels of one picture on the sheet."""


def draw_curve(log: Path, path: Path) -> None:
    """The loss of every line and the mIoU of every validation of a `log.jsonl`, over the epochs, as a PNG."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    validated = [line for line in lines if "mIoU" in line]
    steps_per_epoch = validated[0]["step"] / validated[0]["epoch"]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.subplots()
    right = left.twinx()
    training = [line for line in lines if "mIoU" not in line]
    left.plot([line["step"] / steps_per_epoch for line in training], [line["loss"] for line in training], color="0.75")
    left.plot([line["epoch"] for line in validated], [line["loss"] for line in validated], color="tab:blue")
    left.set_xlabel("epoch")
    left.set_ylabel("loss (train)", color="tab:blue")
    left.set_ylim(bottom=0)
    right.plot([line["epoch"] for line in validated], [line["mIoU"] for line in validated], color="tab:orange")
    best = max(validated, key=lambda line: line["mIoU"])
    right.plot(best["epoch"], best["mIoU"], "o", color="tab:orange")
    right.annotate(
        f"{best['mIoU']:.2f}", (best["epoch"], best["mIoU"]), xytext=(0, -14), textcoords="offset points", ha="right"
    )
    right.set_ylabel("mIoU on val (%)", color="tab:orange")
    right.set_ylim(0, 100)
    left.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def draw_sheet(model: SegmentationModel, data: SegmentationData, path: Path, rows: int = 6) -> None:
    """Picture, label and prediction of a few samples spread over the val split, side by side, as a PNG."""
    samples = data.samples("val")
    chosen = [samples[index] for index in np.linspace(0, len(samples) - 1, min(rows, len(samples))).astype(int)]
    strips = []
    for sample in chosen:
        picture, labels = read_picture(sample.picture), data.labels.read(sample.mask)
        ignored = labels == data.ignore_index
        known = Segmentation(np.where(ignored, 0, labels), data.classes, data.palette, picture)
        coloured = np.where(ignored[..., None], 0, np.asarray(known.colorize()))  # ignored pixels are black
        size = _WIDTH, max(round(picture.shape[0] * _WIDTH / picture.shape[1]), 1)
        parts = [
            Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR),
            Image.fromarray(coloured.astype(np.uint8)).resize(size, Image.Resampling.NEAREST),
            model.predict(picture).colorize().resize(size, Image.Resampling.NEAREST),
        ]
        strips.append(np.concatenate([np.asarray(part) for part in parts], axis=1))
    Image.fromarray(np.concatenate(strips)).save(path)
