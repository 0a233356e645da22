"""Test-time augmentation: logits of whole, windowed, scaled or mirrored inputs, row by row at the output's size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zoo_seg.layers.readout import HeadOutput, Queries, read_out
from zoo_seg.layers.resample import bilinear_matrix, mixing_matrix, resize
from zoo_seg.network import padded_size

Size = tuple[int, int]
Infer = Callable[[Tensor], HeadOutput]
"""A normalised input (N, in_chans, H, W) -> logits (N, C, h, w) at the head's stride, or queries."""

_WINDOWS_TOGETHER = 8
"""Windows that an accelerator gets as one batch; a CPU gains nothing from it."""


@dataclass(frozen=True)
class Geometry:
    """How a network's logits lie over its input, see `SegmentationNetwork`."""

    align_corners: bool = False
    size_divisor: int = 1


class Logits(Protocol):
    """The logits of one input, row by row."""

    @property
    def like(self) -> Tensor:
        """Empty; of the device and type of the rows."""

    @property
    def height(self) -> int:
        """How many rows there are."""

    def rows(self, first: int, last: int) -> Tensor:
        """(N, C, last - first, W); asked for from top to bottom."""


class StridedLogits:
    """Logits (N, C, h, w) as the head gave them, at its own stride."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.like = logits.new_empty(0, dtype=torch.float32)
        self.height: int = logits.shape[-2]

    def rows(self, first: int, last: int) -> Tensor:
        """(N, C, last - first, w)"""
        return self.logits[:, :, first:last]


class InputLogits:
    """A head's output resized to the input's size and read there, which queries and padded networks need."""

    def __init__(self, output: HeadOutput, size: Size, geometry: Geometry) -> None:
        values, classes = output if isinstance(output, Queries) else (output, None)
        self.values, self.classes = values.float(), None if classes is None else classes.float()
        self.like = self.values.new_empty(0)
        self.height, self.width = size
        self.padded = padded_size(*size, geometry.size_divisor)
        self.align_corners = geometry.align_corners

    def rows(self, first: int, last: int) -> Tensor:
        """(N, C, last - first, W)"""
        span, align = (first, last), self.align_corners
        mix = bilinear_matrix(self.values.shape[-2], self.padded[0], self.values, span, align)
        values = resize(mix @ self.values, (last - first, self.padded[1]), align)[..., : self.width]
        return read_out(values, self.classes)


def windows(size: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of the windows along one axis; the last one is shifted inward, never padded."""
    count = max(size - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, size) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


class WindowedLogits:
    """The mean of overlapping windows' logits, each resized to its window, at the input's size.

    The network sees a window when its rows are wanted, and only the low-resolution logits of the windows that are
    still needed are held.
    """

    def __init__(self, infer: Infer, x: Tensor, crop: Size, stride: Size, geometry: Geometry) -> None:
        self.infer, self.x, self.geometry = infer, x, geometry
        self.like = x.new_empty(0, dtype=torch.float32)
        self.height: int = x.shape[-2]
        self.columns = windows(x.shape[-1], crop[1], stride[1])
        self.waiting = deque(windows(self.height, crop[0], stride[0]))
        self.held: deque[tuple[int, int, list[InputLogits]]] = deque()

    def rows(self, first: int, last: int) -> Tensor:
        """(N, C, last - first, W)"""
        while self.held and self.held[0][1] <= first:
            self.held.popleft()
        while self.waiting and self.waiting[0][0] < last:
            top, bottom = self.waiting.popleft()
            self.held.append((top, bottom, self._logits(self.x[..., top:bottom, :])))
        total, count = None, self.like.new_zeros(last - first, self.x.shape[-1])
        for top, bottom, row in self.held:
            begin, end = max(top, first), min(bottom, last)
            for logits, (left, right) in zip(row, self.columns, strict=True):
                place = (..., slice(begin - first, end - first), slice(left, right))
                found = logits.rows(begin - top, end - top)
                if total is None:
                    total = found.new_zeros(*found.shape[:2], *count.shape)
                total[place] += found
                count[place] += 1
        assert total is not None  # every row is in a window
        return total / count

    def _logits(self, x: Tensor) -> list[InputLogits]:
        """The low-resolution logits of a row of windows."""
        crops = [x[..., left:right] for left, right in self.columns]
        together = 1 if x.device.type == "cpu" else max(_WINDOWS_TOGETHER // len(x), 1)
        found: list[InputLogits] = []
        for start in range(0, len(crops), together):
            output = self.infer(torch.cat(crops[start : start + together]))
            size = (crops[start].shape[-2], crops[start].shape[-1])
            found += [InputLogits(part, size, self.geometry) for part in _split(output, len(x))]
        return found


def _split(output: HeadOutput, size: int) -> list[HeadOutput]:
    """A batch's output in parts of `size` images."""
    if not isinstance(output, Queries):
        return list(torch.split(output, size))
    return [Queries(*parts) for parts in zip(*(torch.split(each, size) for each in output), strict=True)]


class AugmentedLogits:
    """Logits of one scaled or mirrored input, and the sizes that they are resized to in turn.

    Args:
        logits: of the input, or of the mirrored input.
        sizes: (height, width) of every bilinear resize, the last one the output's.
        flip: the logits are of the mirrored input; they are flipped back.
        align_corners: of the resizes.
    """

    def __init__(self, logits: Logits, sizes: list[Size], flip: bool, align_corners: bool) -> None:
        self.logits, self.sizes, self.flip, self.align_corners = logits, sizes, flip, align_corners

    def strip(self, top: int, bottom: int) -> Tensor:
        """Rows top..bottom at the output's size, (N, C, bottom - top, W); float32."""
        heights = [height for height, _ in self.sizes]
        span, align = (top, bottom), self.align_corners
        first, mix = mixing_matrix(self.logits.height, heights, self.logits.like, span, align)
        strip = self.logits.rows(first, first + (bottom - top if mix is None else mix.shape[1])).float()
        if self.flip:
            strip = strip.flip(-1)
        if mix is not None:
            strip = mix @ strip
        for _, width in self.sizes:
            strip = resize(strip, (bottom - top, width), align)
        return strip
