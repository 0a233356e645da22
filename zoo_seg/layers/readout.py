"""What heads return, and how it becomes logits."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zoo_seg.layers.resample import resize


class Queries(NamedTuple):
    """Masks that each stand for a share of every class (MaskFormer, https://arxiv.org/abs/2107.06278).

    They are resized before the sigmoid and the mixing, which is not linear: the result differs from resized logits. A
    head that mixes them itself, see `mixed`, returns logits and has `gives_scores = True`.
    """

    masks: Tensor
    """(N, Q, h, w), logits of each query's mask."""
    classes: Tensor
    """(N, Q, C), the probability of each class; from `forward_train` logits (N, Q, C + 1), the last of no object."""


HeadOutput = Tensor | Queries
"""Logits (N, C, h, w), or queries."""


def read_out(values: Tensor, classes: Tensor | None) -> Tensor:
    """Resized values of a head as logits (N, C, H, W).

    Args:
        values: logits (N, C, H, W), or masks (N, Q, H, W) at the size of the network's input.
        classes: of the queries; None for logits, which stay as they are.
    """
    return values if classes is None else torch.einsum("nqc,nqhw->nchw", classes, values.sigmoid())


MixedAt = Literal["input", "masks", "384x384"]
"""The size of masks at which queries are mixed: the network's input's, the masks' own, or the same for all images."""


def mixed(queries: Queries, at: MixedAt) -> HeadOutput:
    """Logits (N, C, h, w) of queries that are mixed before anything is resized to the input; or the queries."""
    if at == "input":
        return queries
    return read_out(resize(queries.masks, (384, 384)) if at == "384x384" else queries.masks, queries.classes)
