"""Bilinear resizing and adaptive pooling as small matrices, one per axis.

Both are separable and linear: `rows @ x @ columns.T`. The matrix form lets linear layers be moved
in front of a resize, and exports to runtimes that have no adaptive pooling.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Bilinear; (N, C, h, w) -> (N, C, *size)."""
    sides = (*x.shape[-2:], *size)
    # A graph that is exported for any size must not depend on whether this one is the same.
    if not any(isinstance(side, torch.SymInt) for side in sides) and x.shape[-2:] == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


def resize_nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """As `F.interpolate(x, size, mode="nearest")`, by whole numbers, so that it exports for any size."""
    for axis, new in zip((2, 3), size, strict=True):
        x = x.index_select(axis, torch.arange(new, device=x.device) * x.shape[axis] // new)
    return x


def bilinear_matrix(
    size: int, new_size: int, like: Tensor, span: tuple[int, int] | None = None, align_corners: bool = False
) -> Tensor:
    """(new_size, size): the weights with which a bilinear resize mixes one axis.

    With a span only its rows, first to last (exclusive).
    """
    first, last = span or (0, new_size)
    target = torch.arange(first, last, device=like.device, dtype=torch.float64)
    if align_corners:
        place = target * ((size - 1) / max(new_size - 1, 1))
    else:
        place = ((target + 0.5) * (size / new_size) - 0.5).clamp(0, size - 1)
    source = torch.arange(size, device=like.device, dtype=torch.float64)
    return (1 - (place[:, None] - source).abs()).clamp(min=0).to(like.dtype)


def pooling_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """(bins, size): adaptive average pooling; bin i is the mean of floor(i*size/bins) .. ceil((i+1)*size/bins)."""
    index = torch.arange(bins, device=like.device)[:, None]
    start, end = index * size // bins, ((index + 1) * size + bins - 1) // bins
    source = torch.arange(size, device=like.device)
    inside = (source >= start) & (source < end)
    return (inside.to(torch.float64) / (end - start)).to(like.dtype)


def tap_matrix(size: int, new_size: int, like: Tensor, align_corners: bool = False) -> Tensor:
    """(new_size, size, 3): at [:, i, t] what cell i, enlarged and seen through tap t, adds to each place.

    Tap t of a 3x3 convolution reads place y + t - 1; beyond the border it reads zero.
    """
    spread = F.pad(bilinear_matrix(size, new_size, like, align_corners=align_corners), (0, 0, 1, 1))
    return torch.stack([spread[tap : tap + new_size] for tap in range(3)], dim=2)
