"""What training minimises, in two parts, so that the mean is one over all processes' pixels.

A process gives the sum of its weighted losses and the sum of the weights; the loop divides by the weights of all
processes. So two processes equal one with the same batch, however unevenly the labelled pixels are spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.errors import OptionError, TrainingError, ZooSegError
from zoo_seg.layers.readout import HeadOutput
from zoo_seg.layers.resample import resize

Kind = Literal["cross_entropy", "ohem", "focal", "dice", "lovasz"]
OwnLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, C, H, W), float32 at the labels' size, and labels (N, H, W), int64 -> a scalar."""

_FOCUS = 2.0
"""Focal loss's gamma."""
_HARD = -math.log(0.7)
_LEAST_HARD = 16


class LossSum(NamedTuple):
    """Both are float32 scalars; their quotient is the loss of this process's batch."""

    total: Tensor
    """Sum over labelled pixels of weight * loss."""
    weight: Tensor
    """Sum of the weights; 0 where no pixel is labelled, and `total` then is 0 with gradients of 0."""

    @property
    def mean(self) -> Tensor:
        """The loss of this batch, for a loop of one's own; 0 where no pixel is labelled."""
        return self.total / self.weight.clamp(min=1e-12)


class SegmentationLoss(nn.Module):
    """The loss of a batch's logits.

    - `cross_entropy`: over the labelled pixels, each weighted by its class.
    - `ohem`: the same over the hard pixels alone, those whose own class has a probability below 0.7, or the hardest
      sixteenth where they are fewer: online hard example mining (Shrivastava et al. 2016, 1604.03540), with
      BiSeNet's limits. Each process picks from its own batch.
    - `focal`: cross entropy times (1 - p)^2, p the probability of the pixel's own class, so that sure pixels hardly
      count (Lin et al. 2017, 1708.02002).
    - `dice`: cross entropy, plus the mean of 1 - Dice over the classes among the labels of this process's batch,
      without class weights (Milletari et al. 2016, 1606.04797).
    - `lovasz`: cross entropy, plus the Lovász-softmax loss over the same classes (Berman et al. 2018, 1705.08790).
    - a callable of one's own: of logits (N, C, H, W), float32 at the labels' size, and labels (N, H, W), int64, it
      returns a scalar, and counts as much as its batch has labelled pixels. It must leave `ignore_index` out itself.

    Args:
        ignore_index: the label that does not count.
        class_weights: one number a class; None for 1 each.
        align_corners: of the resize to the labels' size, the network's.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        kind: Kind | OwnLoss = "cross_entropy",
        *,
        ignore_index: int,
        class_weights: Tensor | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.kind = kind  # a module becomes a part of this one
        self.ignore_index, self.align_corners = ignore_index, align_corners
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> LossSum:
        """Of logits (N, C, h, w), resized to the labels' size in float32, and labels (N, H, W) of any integer type."""
        labels = labels.long()
        logits = resize(logits.float(), (labels.shape[-2], labels.shape[-1]), self.align_corners)
        labelled = labels != self.ignore_index
        if callable(self.kind):
            weight = labelled.sum().float()
            return LossSum(_own_loss(self.kind, logits, labels) * weight if weight else logits.sum() * 0, weight)
        losses = F.cross_entropy(logits, labels, ignore_index=self.ignore_index, reduction="none")
        weights = labelled.float()
        if self.class_weights is not None:
            weights = weights * self.class_weights[labels.masked_fill(~labelled, 0)]
        if self.kind == "ohem":
            weights = weights * _hard(losses.detach(), labelled)
        if self.kind == "focal":
            losses = losses * (-torch.expm1(-losses)) ** _FOCUS
        total, weight = (losses * weights).sum(), weights.sum()
        if self.kind == "dice":
            total = total + weight * dice_loss(logits, labels, labelled)  # stays whole when divided by the weight
        if self.kind == "lovasz":
            total = total + weight * lovasz_loss(logits, labels, labelled)
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


def lovasz_loss(logits: Tensor, labels: Tensor, labelled: Tensor) -> Tensor:
    """The Lovász extension of 1 - IoU of each class, as a mean over the classes that the labels hold; 0 for none.

    A class's errors, |its probability - whether it is there|, are sorted; each is multiplied by what 1 - IoU rises
    when its pixel joins those that are wrong.

    Args: as `dice_loss`.
    """
    shares, truth = logits.softmax(dim=1).movedim(1, -1)[labelled], labels[labelled]
    total = logits.sum() * 0
    present = torch.unique(truth).tolist()
    for each in present:
        wrong = (truth != each).long()  # whole numbers: float32 cannot count a large batch one by one
        errors, order = ((1 - wrong) - shares[:, each]).abs().sort(descending=True)
        others = wrong[order].cumsum(0)
        count = len(wrong) - others[-1]
        missed = torch.arange(1, len(wrong) + 1, device=wrong.device) - others
        distance = 1 - (count - missed) / (count + others)
        total = total + (errors * distance.diff(prepend=distance.new_zeros(1))).sum()
    return total / max(len(present), 1)


def _own_loss(loss: OwnLoss, logits: Tensor, labels: Tensor) -> Tensor:
    name = getattr(loss, "__qualname__", type(loss).__qualname__)
    try:
        value = loss(logits, labels)
    except (ZooSegError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        given = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise TrainingError(f"the loss {name} raised {type(error).__name__} when given {given}: {error}") from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise OptionError(f"the loss {name} returned {found}; expected a tensor of one number")
    return value.reshape(()).float()


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
