"""What heads of queries share: layers, and the loss that first finds out which query stands for which class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.errors import OptionError
from zoo_seg.layers.losses import LossSum, SegmentationLoss
from zoo_seg.layers.readout import HeadOutput, Queries


class ConvNorm(nn.Sequential):
    """A convolution and GroupNorm; (N, in_channels, H, W) -> (N, channels, H, W)."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 1, *, bias: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=bias)
        self.gn = nn.GroupNorm(math.gcd(32, channels // 8), channels)  # 32 groups of 256 channels, never of one channel


def check_queries(channels: int, heads: int, queries: int, layers: int) -> None:
    """Whether a decoder of queries can be built.

    Raises:
        OptionError: it cannot.
    """
    if channels < 1 or channels % heads or min(queries, layers) < 1:
        raise OptionError(
            f"channels is {channels}, queries {queries} and decoder_layers {layers}; expected a multiple of {heads}, "
            "and at least 1 of the others"
        )


def mask_embedding(channels: int) -> nn.Sequential:
    """What turns a query into the weights by which it sums the pixels' features."""
    return nn.Sequential(
        nn.Linear(channels, channels),
        nn.ReLU(inplace=True),
        nn.Linear(channels, channels),
        nn.ReLU(inplace=True),
        nn.Linear(channels, channels),
    )


# --- training ---------------------------------------------------------------------------------------

_NO_OBJECT = 0.1
"""How much a query counts that stands for nothing."""

Compare = Callable[[Tensor, Tensor], Tensor]
"""Of logits of masks, and masks of 0 and 1 (G, H, W)."""


def matched_losses(
    title: str,
    outputs: Sequence[HeadOutput],
    labels: Tensor,
    pixel: SegmentationLoss,
    class_weight: float,
    costs: Compare,
    mask_losses: Compare,
) -> list[LossSum]:
    """Each class of an image is one mask, matched to one query by the least cost, in every layer.

    Ignored pixels are outside of all masks.

    Args:
        title: the method's name.
        outputs: of each layer masks and class logits, the last layer's first.
        labels: (N, H, W).
        pixel: the loss that the run asks for.
        class_weight: of the class's part, in costs and losses.
        costs: of (Q, h, w), (Q, G).
        mask_losses: of (G, h, w), the sum over all G.

    Raises:
        OptionError: the run asks for another loss.
    """
    if pixel.kind != "cross_entropy" or pixel.class_weights is not None:
        raise OptionError(f"{title} trains its queries by its own loss; leave loss and class_weights out")
    ids = [each.unique() for each in labels.long()]
    ids = [each[each != pixel.ignore_index] for each in ids]
    wanted = [(image == own[:, None, None]).float() for image, own in zip(labels.long(), ids, strict=True)]
    zero = labels.new_zeros((), dtype=torch.float32)
    class_total, class_sum, mask_total, mask_sum = zero, zero, zero, zero
    for output in outputs:
        assert isinstance(output, Queries)
        masks, logits = output.masks.float(), output.classes.float()
        targets = logits.new_full(logits.shape[:2], logits.shape[2] - 1, dtype=torch.long)
        mask_total = mask_total + 0 * masks.sum()  # for a batch without labels
        for image, (own, truth) in enumerate(zip(ids, wanted, strict=True)):
            with torch.no_grad():
                cost = costs(masks[image], truth) - class_weight * logits[image].softmax(-1)[:, own]
            queries, objects = (torch.as_tensor(each, device=masks.device) for each in assign(cost.cpu().numpy()))
            targets[image, queries] = own[objects]
            if len(queries):
                mask_total = mask_total + mask_losses(masks[image, queries], truth[objects])
                mask_sum = mask_sum + len(queries)
        weights = torch.where(targets == logits.shape[2] - 1, _NO_OBJECT, 1.0)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        class_total = class_total + class_weight * (losses * weights.flatten()).sum()
        class_sum = class_sum + weights.sum()
    # A sum over layers of means: all layers have the same weight.
    layers = len(outputs)
    return [LossSum(class_total, class_sum / layers), LossSum(mask_total, mask_sum / layers)]


def dice_costs(shares: Tensor, wanted: Tensor) -> Tensor:
    """(Q, G): 1 - Dice of shares (Q, P) and masks of 0 and 1 (G, P), each with each."""
    return 1 - (2 * shares @ wanted.T + 1) / (shares.sum(1)[:, None] + wanted.sum(1) + 1)


def dice_losses(shares: Tensor, wanted: Tensor) -> Tensor:
    """(G,): 1 - Dice of shares and masks of 0 and 1, both (G, P)."""
    return 1 - (2 * (shares * wanted).sum(1) + 1) / (shares.sum(1) + wanted.sum(1) + 1)


def assign(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns, each once, whose costs have the least sum; as many as the shorter side of (rows, columns).

    The Hungarian method with shortest augmenting paths (Jonker and Volgenant 1987).
    """
    if cost.shape[0] > cost.shape[1]:
        columns, rows = assign(cost.T)
        return rows, columns
    height, width = cost.shape
    cost = np.hstack([np.zeros((height, 1)), cost.astype(np.float64)])  # column 0 is where each row starts
    row_price, column_price = np.zeros(height), np.zeros(width + 1)
    owner = np.full(width + 1, -1)
    for row in range(height):
        owner[0], column = row, 0
        distance, before, seen = np.full(width + 1, np.inf), np.zeros(width + 1, int), np.zeros(width + 1, bool)
        while owner[column] >= 0:
            seen[column] = True
            reduced = cost[owner[column]] - row_price[owner[column]] - column_price
            nearer = ~seen & (reduced < distance)
            distance[nearer], before[nearer] = reduced[nearer], column
            nearest = int(np.argmin(np.where(seen, np.inf, distance)))
            step = distance[nearest]
            row_price[owner[seen]] += step
            column_price[seen] -= step
            distance[~seen] -= step
            column = nearest
        while column:
            owner[column] = owner[before[column]]
            column = before[column]
    columns = np.flatnonzero(owner[1:] >= 0)
    return owner[1:][columns], columns
