"""What training minimises, in two parts, so that the mean is one over all processes' pixels.

A process gives the sum of its weighted losses and the sum of the weights; the loop divides by the weights of all
processes. So two processes equal one with the same batch, however unevenly the labelled pixels are spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.networks.resample import resize

_THRESHOLD = 0.7
_MIN_KEPT = 100_000


class LossSum(NamedTuple):
    """Both are float32 scalars; their quotient is the loss of this process's batch."""

    total: Tensor
    """Sum over labelled pixels of weight * loss."""
    weight: Tensor
    """Sum of the weights; 0 where no pixel is labelled, and `total` then is 0 with gradients of 0."""


class SegmentationLoss(nn.Module):
    """The loss of a batch's logits.

    - `cross_entropy`: over the labelled pixels, each weighted by its class.
    - `ohem`: the same over the hard pixels only, those whose own class has a probability below 0.7, and in any case
      the `min_kept` hardest (online hard example mining, Shrivastava et al. 2016, 1604.03540, as
      segmentation codebases apply it to pixels). The choice is each process's own.
    - `dice`: cross entropy plus 1 - Dice, with squared terms below the line, as Milletari et al. 2016, 1606.04797;
      the mean over the classes among this process's labels, without class weights.

    Args:
        ignore_index: the label that does not count.
        class_weights: one number a class; None for 1 each.
        min_kept: for `ohem`, at least this many pixels of a process's batch count.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        kind: Literal["cross_entropy", "ohem", "dice"] = "cross_entropy",
        *,
        ignore_index: int,
        class_weights: Tensor | None = None,
        min_kept: int = _MIN_KEPT,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.ignore_index = ignore_index
        self.min_kept = min_kept
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> LossSum:
        """Of logits (N, C, h, w), resized to the labels' size in float32, and labels (N, H, W)."""
        logits = resize(logits.float(), (labels.shape[-2], labels.shape[-1]))
        labels = labels.long()
        labelled = labels != self.ignore_index
        losses = F.cross_entropy(
            logits, labels, weight=self.class_weights, ignore_index=self.ignore_index, reduction="none"
        )
        if self.class_weights is None:
            weights = labelled.float()
        else:
            weights = self.class_weights[labels.where(labelled, 0)] * labelled
        if self.kind == "ohem":
            kept = self._hard(logits.detach(), labels, labelled)
            losses, weights = losses * kept, weights * kept
        total, weight = losses.sum(), weights.sum()
        if self.kind == "dice":
            # as a share of the same denominator, so that the mean over all processes gives each its part
            total = total + weight * dice_loss(logits, labels, labelled)
        return LossSum(total, weight)

    def _hard(self, logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
        own = logits.softmax(dim=1).gather(1, labels.where(labelled, 0)[:, None])[:, 0]
        own = own.masked_fill(~labelled, math.inf)
        count = min(self.min_kept, own.numel())
        threshold = own.flatten().kthvalue(count).values.clamp(min=_THRESHOLD) if count else _THRESHOLD
        return (own <= threshold) & labelled


def dice_loss(logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """1 - Dice, as a mean over the classes that the labels hold; logits (N, C, H, W), the others (N, H, W)."""
    shares = logits.softmax(dim=1) * labelled[:, None]
    truth = F.one_hot(labels.where(labelled, 0), logits.shape[1]).movedim(-1, 1) * labelled[:, None]
    pixels = truth.sum(dim=(0, 2, 3))
    overlap = (shares * truth).sum(dim=(0, 2, 3))
    dice = 2 * overlap / (shares.square().sum(dim=(0, 2, 3)) + pixels).clamp(min=1e-6)
    present = pixels > 0
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def balanced_class_weights(pixels: Sequence[int]) -> Tensor:
    """Weights that rise as a class gets rarer, 1 / ln(1.02 + share): ENet (Paszke et al. 2016, 1606.02147).

    Scaled to a mean of 1 over the pixels, so that the learning rate keeps its meaning. A class without pixels gets
    the weight of a vanishing share: nothing depends on it unless the class turns up.

    Args:
        pixels: labelled pixels of each class in the train split.

    Returns:
        float32 (C,); ones where there is no pixel at all.
    """
    counts = torch.tensor(pixels, dtype=torch.float64)
    if not counts.sum():
        return torch.ones(len(counts))
    share = counts / counts.sum()
    weights = 1 / torch.log(1.02 + share)
    return (weights / (share * weights).sum()).float()
