"""Resizes and windows along one axis: which cells each place is mixed from, and with which weights.

All of them are linear, so that a chain of them, such as windows that are resized, averaged where they overlap and
resized to the image, is one mixing with a few taps a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Blend = Literal["mean", "linear"]
"""How windows are averaged where they overlap: all alike, or each less and less towards its border."""

_BLOCK = 256
"""Places whose mixing is one small matrix."""


@dataclass(frozen=True)
class Taps:
    """The mixing of one axis; a place's weights are positive and add up to 1."""

    cells: Tensor
    """(places, taps), int64, rising; a place with fewer taps repeats its last one."""
    weights: Tensor
    """(places, taps), float64; 0 for what is repeated."""

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, places: slice) -> Taps:
        return Taps(self.cells[places], self.weights[places])

    @property
    def span(self) -> tuple[int, int]:
        """The first cell that is used, and the one after the last."""
        return int(self.cells[:, 0].min()), int(self.cells[:, -1].max()) + 1

    def resized(self, size: int, align_corners: bool = False) -> Taps:
        """Followed by a bilinear resize of the places to `size`."""
        if size == len(self):
            return self
        resize = bilinear(len(self), size, align_corners)
        weights = resize.weights[:, :, None] * self.weights[resize.cells]
        return _merged(self.cells[resize.cells].flatten(1), weights.flatten(1))

    def mirrored(self) -> Taps:
        """The last place first."""
        return Taps(self.cells.flip(0), self.weights.flip(0))

    def matrix(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The cells that are used, and what each place takes from them: (used,) and (places, used)."""
        used, index = torch.unique(self.cells, return_inverse=True)
        matrix = self.weights.new_zeros(len(self), len(used)).scatter_add_(1, index, self.weights)
        return used.to(like.device), matrix.to(like)


def bilinear(size: int, new_size: int, align_corners: bool = False) -> Taps:
    """A bilinear resize, as torch's."""
    place = torch.arange(new_size, dtype=torch.float64, device="cpu")
    if align_corners:
        place = place * ((size - 1) / max(new_size - 1, 1))
    else:
        place = ((place + 0.5) * (size / new_size) - 0.5).clamp(0, size - 1)
    cells = torch.stack([place.floor(), place.floor() + 1], dim=1).long().clamp(max=size - 1)
    share = place - cells[:, 0]
    return _merged(cells, torch.stack([1 - share, share], dim=1))


def importance(size: int, blend: Blend) -> Tensor:
    """How much each place of a window counts where windows overlap: (size,), float32."""
    if blend == "mean":
        return torch.ones(size, dtype=torch.float32, device="cpu")
    place = torch.arange(size, device="cpu")
    return torch.minimum(place + 1, size - place).float()


def overlapping(windows: Sequence[tuple[int, int]], within: Taps, cells: int, blend: Blend = "mean") -> Taps:
    """The blend of windows (start, end) of like size, each mixed as `within` from `cells` cells of its own."""
    start, end = torch.tensor(windows, device="cpu").T.contiguous()
    place = torch.arange(int(end[-1]), device="cpu")
    first = torch.searchsorted(end, place, right=True)
    count = torch.searchsorted(start, place, right=True) - first
    window = first[:, None] + torch.arange(int(count.max()), device="cpu")
    covers = window < (first + count)[:, None]
    window = torch.where(covers, window, first[:, None])
    inside = place[:, None] - start[window]
    shares = importance(len(within), blend).double()[inside] * covers
    weights = within.weights[inside] * (shares / shares.sum(1, keepdim=True))[:, :, None]
    return _merged((within.cells[inside] + window[:, :, None] * cells).flatten(1), weights.flatten(1))


def _merged(cells: Tensor, weights: Tensor) -> Taps:
    """Each cell once a place, without those of weight 0."""
    strongest = cells.gather(1, weights.argmax(1, keepdim=True))
    cells, order = torch.where(weights > 0, cells, strongest).sort(1)
    weights = weights.gather(1, order)
    is_new = cells.diff(dim=1, prepend=cells[:, :1] - 1) != 0
    rank = is_new.cumsum(1) - 1
    taps = int(rank.max()) + 1
    total = torch.zeros_like(weights).scatter_add_(1, rank, weights)[:, :taps]
    each = torch.zeros_like(cells).scatter_(1, rank, cells)[:, :taps]
    return Taps(each.cummax(1).values, total)


class Spread:
    """The mixing of the last axis, block by block: of a block's places only the cells that it uses are looked at."""

    def __init__(self, taps: Taps, like: Tensor) -> None:
        self.size = len(taps)
        self.blocks = [taps[first : first + _BLOCK].matrix(like) for first in range(0, len(taps), _BLOCK)]

    def __call__(self, x: Tensor) -> Tensor:
        """(..., cells) -> (..., places)"""
        result = x.new_empty(*x.shape[:-1], self.size)
        for number, (used, matrix) in enumerate(self.blocks):
            place = slice(number * _BLOCK, number * _BLOCK + len(matrix))
            result[..., place] = x.index_select(-1, used) @ matrix.T
        return result
