"""What heads return, and how it becomes logits."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from zoo_seg.layers.resample import resize

MixedAt = Literal["input", "masks", "384x384"]
"""At which size queries are mixed: the input's, their masks' own, or one for all images."""


class Queries(NamedTuple):
    """Masks that each stand for a share of every class (MaskFormer, https://arxiv.org/abs/2107.06278).

    They are resized before the sigmoid and the mixing, which is not linear: the result differs from resized logits.
    """

    masks: Tensor
    """(N, Q, h, w), logits of each query's mask."""
    classes: Tensor
    """(N, Q, C), the probability of each class; from `forward_train` logits (N, Q, C + 1), the last of no object."""
    mixed_at: tuple[int, int] | None = None
    """(height, width) that masks are resized to and mixed at; None is the input's, with its padding. From there on
    they are resized like logits."""

    @classmethod
    def of(cls, masks: Tensor, classes: Tensor, at: MixedAt) -> Queries:
        """Queries of these masks and classes."""
        own = masks.shape[-2], masks.shape[-1]
        return cls(masks, classes, {"input": None, "masks": own, "384x384": (384, 384)}[at])

    def mixed(self) -> Tensor:
        """Logits (N, C, *mixed_at), float32; not for what is mixed at the input's size."""
        assert self.mixed_at is not None
        return read_out(resize(self.masks.float(), self.mixed_at), self.classes.float())


HeadOutput = Tensor | Queries
"""Logits (N, C, h, w), or queries."""


def read_out(values: Tensor, classes: Tensor | None) -> Tensor:
    """Resized values of a head as logits (N, C, H, W).

    Args:
        values: logits (N, C, H, W), or masks (N, Q, H, W) at the size of the network's input.
        classes: of the queries; None for logits, which stay as they are.
    """
    return values if classes is None else torch.einsum("nqc,nqhw->nchw", classes, values.sigmoid())


def mixed_early(output: HeadOutput) -> HeadOutput:
    """Queries only where they are mixed at the input's size, else logits."""
    return output.mixed() if isinstance(output, Queries) and output.mixed_at else output
