"""Where a network is wrong: which classes it takes for which, and on which images."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo_seg.data.labels import Ids

CONFUSION, MATRIX, IMAGES, WORST = "confusion.csv", "confusion.png", "images.csv", "worst.png"
FILES = (CONFUSION, MATRIX, IMAGES, WORST)
"""What `zoo_seg.evaluation.report` writes."""

MOST_CLASSES = 1024
"""Beyond it there is no confusion matrix: it would need more than 8 MB."""
_KEPT = 8
"""Of so many images the prediction is kept, the worst ones."""
_SIDE = 512
"""Pixels of the longer side of what is kept of a prediction, at most."""


@dataclass(frozen=True)
class ImageScore:
    """How good the prediction of one image is, in percent; NaN where every pixel is ignored."""

    index: int
    """Of the image among those that were measured."""
    name: str
    miou: float
    """The mean over the classes in its label or its prediction."""
    aacc: float
    pixels: int
    """Those that have a label."""
    worst_class: int | None
    """Of the classes in its label the one with the lowest IoU."""
    worst_iou: float


@dataclass(frozen=True)
class Details:
    """Of all images that were measured, on all processes."""

    confusion: npt.NDArray[np.int64] | None
    """(C, C): pixels of the row's class that were predicted as the column's; None beyond 1024 classes."""
    images: tuple[ImageScore, ...]
    """In the order of the data set."""
    worst: tuple[tuple[ImageScore, Ids], ...]
    """The eight lowest mIoU, lowest first, and what was predicted: every n-th pixel, 512x512 at most."""


class Collector:
    """Adds up one image after another; memory does not depend on their size, nor much on their number."""

    def __init__(self, num_classes: int, ignore_index: int) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.confusion = np.zeros((num_classes, num_classes), np.int64) if num_classes <= MOST_CLASSES else None
        self.images: list[ImageScore] = []
        self.worst: list[tuple[float, int, Ids]] = []

    def add(self, index: int, name: str, predicted: Ids, label: Ids) -> None:
        """The class ids (H, W) that were predicted for an image, and its label."""
        counts = label != self.ignore_index
        truth, found = label[counts].astype(np.int64), predicted[counts].astype(np.int64)
        if self.confusion is not None:
            pairs = np.bincount(truth * self.num_classes + found, minlength=self.confusion.size)
            pairs = pairs.reshape(self.confusion.shape)
            self.confusion += pairs
            hit, labelled, claimed = pairs.diagonal(), pairs.sum(1), pairs.sum(0)
        else:
            every = (truth[truth == found], truth, found)
            hit, labelled, claimed = (np.bincount(ids, minlength=self.num_classes) for ids in every)
        score = _score(index, name, hit, labelled, claimed)
        self.images.append(score)
        if score.pixels:
            item = -score.miou, -index, coarse(predicted).copy()
            (heapq.heappush if len(self.worst) < _KEPT else heapq.heappushpop)(self.worst, item)


def coarse(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Every n-th pixel of an array (H, W, ...), so that none of its sides is longer than 512."""
    step = -(-max(pixels.shape[:2]) // _SIDE)
    return pixels[::step, ::step]


def merged(collectors: Sequence[Collector]) -> Details:
    """What the processes found, as if one had seen all images."""
    images = sorted((image for each in collectors for image in each.images), key=lambda image: image.index)
    worst = sorted((item for each in collectors for item in each.worst), key=lambda item: item[:2], reverse=True)
    matrices = [each.confusion for each in collectors if each.confusion is not None]
    return Details(
        confusion=sum(matrices[1:], matrices[0]) if matrices else None,
        images=tuple(images),
        worst=tuple((images[-index], prediction) for _, index, prediction in worst[:_KEPT]),
    )


def _score(index: int, name: str, hit: Any, labelled: Any, claimed: Any) -> ImageScore:
    pixels = int(labelled.sum())
    with np.errstate(invalid="ignore"):
        iou = 100 * hit / (labelled + claimed - hit)
    present = np.flatnonzero(labelled)
    worst = int(present[iou[present].argmin()]) if pixels else None
    return ImageScore(
        index,
        name,
        miou=float(np.nanmean(iou)) if pixels else float("nan"),
        aacc=100 * float(hit.sum()) / pixels if pixels else float("nan"),
        pixels=pixels,
        worst_class=worst,
        worst_iou=float("nan") if worst is None else float(iou[worst]),
    )
