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

from zoo_seg.layers.readout import HeadOutput
from zoo_seg.layers.resample import resize

_HARD = -math.log(0.7)
_LEAST_HARD = 16


class LossSum(NamedTuple):
    """Both are float32 scalars; their quotient is the loss of this process's batch."""

    total: Tensor
    """Sum over labelled pixels of weight * loss."""
    weight: Tensor
    """Sum of the weights; 0 where no pixel is labelled, and `total` then is 0 with gradients of 0."""


class SegmentationLoss(nn.Module):
    """The loss of a batch's logits.

    - `cross_entropy`: over the labelled pixels, each weighted by its class.
    - `ohem`: the same over the hard pixels alone, those whose own class has a probability below 0.7, or the hardest
      sixteenth where they are fewer: online hard example mining (Shrivastava et al. 2016, 1604.03540), with
      BiSeNet's limits. Each process picks from its own batch.
    - `dice`: cross entropy, plus the mean of 1 - Dice over the classes among the labels of this process's batch,
      without class weights (Milletari et al. 2016, 1606.04797).

    Args:
        ignore_index: the label that does not count.
        class_weights: one number a class; None for 1 each.
        align_corners: of the resize to the labels' size, the network's.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        kind: Literal["cross_entropy", "ohem", "dice"] = "cross_entropy",
        *,
        ignore_index: int,
        class_weights: Tensor | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.ignore_index, self.align_corners = ignore_index, align_corners
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> LossSum:
        """Of logits (N, C, h, w), resized to the labels' size in float32, and labels (N, H, W) of any integer type."""
        labels = labels.long()
        logits = resize(logits.float(), (labels.shape[-2], labels.shape[-1]), self.align_corners)
        losses = F.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="none")
        labelled = labels != self.ignore_index
        weights = labelled.float()
        if self.class_weights is not None:
            weights = weights * self.class_weights[labels.masked_fill(~labelled, 0)]
        if self.kind == "ohem":
            weights = weights * _hard(losses.detach(), labelled)
        total, weight = (losses * weights).sum(), weights.sum()
        if self.kind == "dice":
            total = total + weight * dice_loss(logits, labels, labelled)  # stays whole when divided by the weight
        return LossSum(total, weight)


def pixel_losses(
    outputs: Sequence[HeadOutput], labels: Tensor, pixel: SegmentationLoss, aux_weight: float
) -> list[LossSum]:
    """The pixel loss of each head's logits, of all but the first weighted by `aux_weight`."""
    sums = []
    for number, logits in enumerate(outputs):
        assert isinstance(logits, Tensor)  # a family with other outputs has another loss
        total, weight = pixel(logits, labels)
        sums.append(LossSum(aux_weight * total if number else total, weight))
    return sums


def _hard(losses: Tensor, labelled: Tensor) -> Tensor:
    """Which pixels OHEM keeps."""
    hard = (losses > _HARD) & labelled
    least = math.ceil(int(labelled.sum()) / _LEAST_HARD)
    if least <= int(hard.sum()):
        return hard
    hardest = losses[labelled].topk(least).values[-1]
    return (losses >= hardest) & labelled


def dice_loss(logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """1 - Dice, with squares below the line, as a mean over the classes that the labels hold; 0 for none.

    Args:
        logits: (N, C, H, W), float32.
        labels: (N, H, W), int64.
        labelled: (N, H, W), whether a pixel counts.
    """
    shares = logits.softmax(dim=1) * labelled[:, None]
    index = labels.masked_fill(~labelled, 0)
    own = shares.gather(1, index[:, None])[:, 0]
    # one sum a row first: float32 cannot count a large batch one by one
    rows = own.new_zeros(*labels.shape[:2], logits.shape[1])
    overlap = rows.scatter_add(2, index, own).sum(dim=(0, 1))
    pixels = rows.scatter_add(2, index, labelled.to(rows.dtype)).sum(dim=(0, 1))
    dice = 2 * overlap / (shares.square().sum(dim=(0, 2, 3)) + pixels).clamp(min=1)
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
