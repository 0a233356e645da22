"""One look at a picture: the logits of a whole input or of its windows, row by row at the output's size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from zoo_seg.layers.resample import bilinear_matrix, mixing_matrix, resize

Size = tuple[int, int]
Infer = Callable[[Tensor], Tensor]
"""A normalised input (N, 3, H, W) -> logits (N, C, h, w) at the head's stride."""

_WINDOWS_TOGETHER = 8
"""Windows that an accelerator gets as one batch; a CPU gains nothing from it."""


def windows(size: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of the windows along one axis; the last one is shifted inward, never padded."""
    count = max(size - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, size) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


class Whole:
    """The logits of a whole input, at the head's stride. `like` is an empty tensor of what `rows` returns."""

    def __init__(self, infer: Infer, x: Tensor) -> None:
        self.logits = infer(x)
        self.like = self.logits.new_empty(0, dtype=torch.float32)
        self.height: int = self.logits.shape[-2]

    def rows(self, first: int, last: int) -> Tensor:
        """(N, C, last - first, w)"""
        return self.logits[:, :, first:last]


class Slide:
    """The mean of overlapping windows' logits, each resized to its window, at the input's size.

    Rows are asked for from top to bottom. The network sees a window when its rows are wanted, and only
    the low-resolution logits of the windows that are still needed are held.
    """

    def __init__(self, infer: Infer, x: Tensor, crop: Size, stride: Size) -> None:
        self.infer, self.x = infer, x
        self.like = x.new_empty(0, dtype=torch.float32)
        self.height: int = x.shape[-2]
        self.columns = windows(x.shape[-1], crop[1], stride[1])
        self.waiting = deque(windows(self.height, crop[0], stride[0]))
        self.held: deque[tuple[int, int, list[Tensor]]] = deque()

    def rows(self, first: int, last: int) -> Tensor:
        """(N, C, last - first, W)"""
        while self.held and self.held[0][1] <= first:
            self.held.popleft()
        while self.waiting and self.waiting[0][0] < last:
            top, bottom = self.waiting.popleft()
            self.held.append((top, bottom, self._logits(self.x[..., top:bottom, :])))
        some = self.held[0][2][0]
        total = some.new_zeros(*some.shape[:2], last - first, self.x.shape[-1])
        count = some.new_zeros(last - first, self.x.shape[-1])
        for top, bottom, row in self.held:
            begin, end = max(top, first), min(bottom, last)
            mix = bilinear_matrix(some.shape[-2], bottom - top, some, (begin - top, end - top))
            for logits, (left, right) in zip(row, self.columns, strict=True):
                place = (..., slice(begin - first, end - first), slice(left, right))
                total[place] += resize(mix @ logits, (end - begin, right - left))
                count[place] += 1
        return total / count

    def _logits(self, x: Tensor) -> list[Tensor]:
        """The low-resolution logits of a row of windows, float32."""
        crops = [x[..., left:right] for left, right in self.columns]
        together = 1 if x.device.type == "cpu" else max(_WINDOWS_TOGETHER // len(x), 1)
        found: list[Tensor] = []
        for start in range(0, len(crops), together):
            found += torch.split(self.infer(torch.cat(crops[start : start + together])).float(), len(x))
        return found


class Look:
    """Logits and the sizes that they are resized to in turn, the last one the output's.

    Args:
        logits: of the input, or of the mirrored input.
        sizes: (height, width) of every bilinear resize.
        flip: the logits are of the mirrored input; they are flipped back.
    """

    def __init__(self, logits: Whole | Slide, sizes: list[Size], flip: bool) -> None:
        self.logits, self.sizes, self.flip = logits, sizes, flip

    def strip(self, top: int, bottom: int) -> Tensor:
        """Rows top..bottom at the output's size, (N, C, bottom - top, W); float32."""
        heights = [height for height, _ in self.sizes]
        first, mix = mixing_matrix(self.logits.height, heights, self.logits.like, (top, bottom))
        strip = self.logits.rows(first, first + (bottom - top if mix is None else mix.shape[1])).float()
        if self.flip:
            strip = strip.flip(-1)
        if mix is not None:
            strip = mix @ strip
        for _, width in self.sizes:
            strip = resize(strip, (bottom - top, width))
        return strip
