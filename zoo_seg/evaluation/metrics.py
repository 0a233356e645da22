"""mIoU and its relatives, counted in integers and added up over processes.

The numbers equal those of SSSegmentation (chainercv's `eval_semantic_segmentation` and its own
`Evaluation`) and of MMSegmentation (`IoUMetric`), whose rules for absent classes agree.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zoo_seg.errors import MissingExtraError, OptionError

try:
    from torchmetrics import Metric
except ImportError as error:
    raise MissingExtraError(f"measuring needs torchmetrics ({error}); pip install 'zoo_seg[evaluate]'") from None

Array = npt.NDArray[Any]


class SegmentationMetrics(Metric):
    """Scores of class maps against labels, over any number of images and processes.

    Three counts a class are kept, however many classes there are.

    A pixel whose label is `ignore_index` counts nowhere, whatever was predicted there.

    Args:
        num_classes: class ids are 0 to `num_classes` - 1.
        ignore_index: the label of pixels that do not count.
        options: those of `torchmetrics.Metric`, such as `sync_on_compute=`.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    true_positives: Tensor
    """(C,) int64: pixels of each class that were predicted as it."""
    false_positives: Tensor
    """(C,) int64: pixels of other classes that were predicted as it."""
    false_negatives: Tensor
    """(C,) int64: pixels of each class that were predicted as another one."""

    def __init__(self, num_classes: int, ignore_index: int = 255, **options: Any) -> None:
        if num_classes < 1:
            raise OptionError(f"num_classes is {num_classes}; expected at least 1")
        super().__init__(**options)
        self.num_classes, self.ignore_index = num_classes, ignore_index
        for name in ("true_positives", "false_positives", "false_negatives"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, pred: Array | Tensor, label: Array | Tensor) -> None:
        """Count the pixels of an image or a batch.

        Args:
            pred, label: class ids, arrays or tensors of any integer type, on any device, of one shape.

        Raises:
            OptionError: the shapes differ, the values are no whole numbers, or a pixel that counts has
                a class id outside the classes. The original projects pass over such a label in two
                different ways; it always is a mistake in the label rules.
        """
        found, truth = _whole_numbers("pred", pred), _whole_numbers("label", label)
        if found.shape != truth.shape:
            raise OptionError(f"pred has shape {found.shape} and label {truth.shape}; expected the same shape")
        counts = truth != self.ignore_index
        found, truth = found[counts], truth[counts]
        self._check("label", truth, f" or ignore_index {self.ignore_index}")
        self._check("pred", found)
        right = found == truth
        wrong = ~right
        self.true_positives += self._count(truth[right])
        self.false_positives += self._count(found[wrong])
        self.false_negatives += self._count(truth[wrong])

    def _count(self, ids: Array) -> Tensor:
        counts = np.bincount(ids.astype(np.intp, copy=False), minlength=self.num_classes)
        return torch.from_numpy(counts).to(self.true_positives)

    def _check(self, name: str, ids: Array, otherwise: str = "") -> None:
        for extreme in (ids.min(), ids.max()) if ids.size else ():
            if not 0 <= extreme < self.num_classes:
                raise OptionError(f"{name} holds class id {extreme}; expected 0 to {self.num_classes - 1}{otherwise}")

    def compute(self) -> dict[str, Any]:
        """Everything counted so far, of all processes, in percent.

        Returns:
            `mIoU`, `aAcc`, `mAcc`, `mDice` and `mFscore` as floats; `IoU`, `Acc`, `Dice` and `Fscore` of each
            class as float64 arrays (C,). A quotient 0/0 is NaN, which a mean passes over: a class absent
            from predictions and labels counts nowhere; one only predicted has IoU and Dice 0 and no Acc; one
            never predicted right has Dice 0 but no Fscore (precision and recall are 0 or NaN), so that
            mFscore is not mDice.
        """
        hit = self.true_positives.cpu().numpy()
        predicted, labelled = hit + self.false_positives.cpu().numpy(), hit + self.false_negatives.cpu().numpy()
        dice = _percent(2 * hit, predicted + labelled)
        per_class = {
            "IoU": _percent(hit, predicted + labelled - hit),
            "Acc": _percent(hit, labelled),
            "Dice": dice,
            "Fscore": np.where(hit > 0, dice, np.nan),
        }
        return {
            "mIoU": _mean(per_class["IoU"]),
            "aAcc": float(_percent(hit.sum(), labelled.sum())),
            "mAcc": _mean(per_class["Acc"]),
            "mDice": _mean(per_class["Dice"]),
            "mFscore": _mean(per_class["Fscore"]),
            **per_class,
        }


def _whole_numbers(name: str, ids: Array | Tensor) -> Array:
    """An integer array, on the CPU (where a histogram takes a few milliseconds)."""
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise OptionError(f"{name} has type {array.dtype}; expected class ids of an integer type (argmax of logits)")
    return array


def _percent(part: Array, whole: Array) -> npt.NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(100 * part / whole, dtype=np.float64)


def _mean(values: npt.NDArray[np.float64]) -> float:
    """The mean of what is not NaN; NaN where nothing is left."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
