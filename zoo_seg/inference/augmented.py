"""Test-time augmentation: logits of whole, windowed, scaled or mirrored inputs, row by row at the output's size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from types import EllipsisType
from typing import Protocol

import torch
from torch import Tensor

from zoo_seg.inference.taps import Blend, Spread, Taps, bilinear, importance, overlapping
from zoo_seg.layers.readout import HeadOutput, Queries, read_out
from zoo_seg.layers.resample import resize
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
    """Logits at the output's size, in strips."""

    @property
    def size(self) -> Size:
        """(height, width) of the output."""

    def strip(self, top: int, bottom: int) -> Tensor:
        """Rows top..bottom, (N, C, bottom - top, W); float32. Asked for from top to bottom."""


# --- linear heads -------------------------------------------------------------------------------


class Cells(Protocol):
    """What a head gives at its own stride, for the input or for windows of it."""

    @property
    def like(self) -> Tensor:
        """Empty; of the device of the cells, float32."""

    @property
    def height(self) -> int:
        """How many rows of them one pass of the network gives."""

    def rows(self, first: int, last: int) -> Tensor:
        """(N, C, last - first, w), float32; asked for from top to bottom."""


class WholeCells:
    """The logits (N, C, h, w) of the whole input."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        self.like = logits.new_empty(0, dtype=torch.float32)
        self.height: int = logits.shape[-2]

    def rows(self, first: int, last: int) -> Tensor:
        return self.logits[:, :, first:last].float()


class WindowCells:
    """The logits of windows: those of a row of windows side by side, and row below row.

    The network sees a row of windows when its cells are wanted; those above are forgotten.
    """

    def __init__(self, windows: Windows, first: list[HeadOutput]) -> None:
        self.windows = windows
        self.held = deque([self._beside(first)])
        self.above = 0  # rows of windows that are forgotten
        self.like = self.held[0].new_empty(0)
        self.height: int = self.held[0].shape[-2]

    def rows(self, first: int, last: int) -> Tensor:
        while self.held and (self.above + 1) * self.height <= first:
            self.held.popleft()
            self.above += 1
        while (self.above + len(self.held)) * self.height < last:
            self.held.append(self._beside(self.windows.infer_row()))
        start, end = first - self.above * self.height, last - self.above * self.height
        parts = [
            each[:, :, max(start - top, 0) : end - top]
            for top, each in zip(count(step=self.height), self.held, strict=False)
            if start < top + self.height and top < end
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    @staticmethod
    def _beside(row: list[HeadOutput]) -> Tensor:
        parts = [each for each in row if isinstance(each, Tensor)]  # all: a head is linear or it is not
        return torch.cat(parts, dim=3).float()


class LinearLogits:
    """Cells that are only resized and averaged on the way to the output: one mixing an axis.

    Args:
        cells: of the input, or of windows of it.
        rows, columns: what the output takes from them.
    """

    def __init__(self, cells: Cells, rows: Taps, columns: Taps) -> None:
        self.cells, self.rows, self.columns = cells, rows, columns

    @property
    def size(self) -> Size:
        return len(self.rows), len(self.columns)

    @cached_property
    def _spread(self) -> Spread:
        return Spread(self.columns, self.cells.like)

    def strip(self, top: int, bottom: int) -> Tensor:
        used, matrix = self.rows[top:bottom].matrix(self.cells.like)
        first, last = int(used[0]), int(used[-1]) + 1
        return self._spread(matrix @ self.cells.rows(first, last).index_select(2, used - first))

    @classmethod
    def of(
        cls, logits: HeadOutput, seen: Size, output: Size, geometry: Geometry, *, via_input: bool, flip: bool = False
    ) -> LinearLogits:
        """The logits of a whole input.

        Args:
            logits: (N, C, h, w), or queries that are mixed before they are resized to the input.
            seen: (height, width) of the input.
            output: that of the result.
            geometry: the network's.
            via_input: resize to the input's size and then to the output's, rather than at once. What is cut off
                again makes it so in any case.
            flip: the input was mirrored; the result is mirrored back.
        """
        via_input = via_input or geometry.size_divisor > 1
        grid = logits.mixed_at if isinstance(logits, Queries) else (logits.shape[-2], logits.shape[-1])
        assert grid is not None  # `QueryLogits` are of the others
        rows, columns = (
            (_over(cells, size, geometry) if via_input else bilinear(cells, end, geometry.align_corners)).resized(
                end, geometry.align_corners
            )
            for cells, size, end in zip(grid, seen, output, strict=True)
        )
        cells = MixedCells(logits, grid) if isinstance(logits, Queries) else WholeCells(logits)
        return cls(cells, rows, columns.mirrored() if flip else columns)


def _over(cells: int, size: int, geometry: Geometry) -> Taps:
    """What each place of an input takes from its cells; those of its padding are cut off."""
    return bilinear(cells, padded_size(size, size, geometry.size_divisor)[0], geometry.align_corners)[:size]


# --- windows ------------------------------------------------------------------------------------


def windows(size: int, crop: int, stride: int | None) -> list[tuple[int, int]]:
    """(start, end) of the windows along one axis; the last one is shifted inward, never padded.

    Without a stride as few as cover the axis, evenly spread; rounded as transformers does, whose last window may miss
    the last pixel by that.
    """
    if stride is None:
        gaps = (size - 1) // crop
        step = crop - ((gaps + 1) * crop - size) / max(gaps, 1)
        starts = [*(int(i * step) for i in range(gaps)), max(size - crop, 0)]
        return [(start, min(start + crop, size)) for start in starts]
    count = max(size - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, size) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


class Input(Protocol):
    """What windows are cut from: a tensor (N, in_chans, H, W), or what reads them from a file when they are wanted."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...
    def __getitem__(self, place: tuple[EllipsisType, slice, slice], /) -> Tensor: ...


class Windows:
    """The windows of an input, which the network sees row by row."""

    def __init__(self, infer: Infer, x: Input, crop: Size, stride: Size | None) -> None:
        self.infer, self.x = infer, x
        self.rows, self.columns = (
            windows(size, side, step)
            for size, side, step in zip(x.shape[-2:], crop, stride or (None, None), strict=True)
        )
        self.size = self.rows[0][1] - self.rows[0][0], self.columns[0][1] - self.columns[0][0]
        self.waiting = deque(self.rows)

    def infer_row(self) -> list[HeadOutput]:
        """What the head gives for each window of the next row."""
        top, bottom = self.waiting.popleft()
        crops = [self.x[..., top:bottom, left:right] for left, right in self.columns]
        together = 1 if self.x.device.type == "cpu" else max(_WINDOWS_TOGETHER // len(self.x), 1)
        found: list[HeadOutput] = []
        for start in range(0, len(crops), together):
            found += _split(self.infer(torch.cat(crops[start : start + together])), len(self.x))
        return found


def _split(output: HeadOutput, size: int) -> list[HeadOutput]:
    """A batch's output in parts of `size` images."""
    if not isinstance(output, Queries):
        return list(torch.split(output, size))
    parts = zip(torch.split(output.masks, size), torch.split(output.classes, size), strict=True)
    return [Queries(masks, classes, output.mixed_at) for masks, classes in parts]


def windowed_logits(
    infer: Infer,
    x: Input,
    crop: Size,
    stride: Size | None,
    output: Size,
    geometry: Geometry,
    *,
    flip: bool,
    blend: Blend = "mean",
) -> Logits:
    """The blend of overlapping windows' logits, each resized to its window, then resized to the output."""
    over = Windows(infer, x, crop, stride)
    first, align = over.infer_row(), geometry.align_corners
    if isinstance(first[0], Queries):
        return QueryLogits(QueryWindows(over, first, geometry, blend), output, flip, align)
    rows, columns = (
        overlapping(spans, _over(cells, size, geometry), cells, blend).resized(end, align)
        for spans, size, cells, end in zip(
            (over.rows, over.columns), over.size, first[0].shape[-2:], output, strict=True
        )
    )
    return LinearLogits(WindowCells(over, first), rows, columns.mirrored() if flip else columns)


# --- queries ------------------------------------------------------------------------------------


class WholeQueries:
    """Queries whose masks are resized, to the input or to the size that they are mixed at, and read there.

    Args:
        output: the queries.
        rows, columns: what that size takes from the masks.
    """

    def __init__(self, output: Queries, rows: Taps, columns: Taps) -> None:
        self.masks, self.classes = output.masks.float(), output.classes.float()
        self.size, self.vertical = (len(rows), len(columns)), rows
        self._spread = Spread(columns, self.masks)

    def strip(self, top: int, bottom: int) -> Tensor:
        used, matrix = self.vertical[top:bottom].matrix(self.masks)
        return read_out(self._spread(matrix @ self.masks.index_select(2, used)), self.classes)


class MixedCells:
    """The logits of queries that are mixed at a size of their own, and then resized like those of a linear head."""

    def __init__(self, output: Queries, size: Size) -> None:
        taps = (bilinear(cells, side) for cells, side in zip(output.masks.shape[-2:], size, strict=True))
        self.queries, self.height = WholeQueries(output, *taps), size[0]
        self.like = output.masks.new_empty(0, dtype=torch.float32)

    def rows(self, first: int, last: int) -> Tensor:
        return self.queries.strip(first, last)


def queries_over(output: Queries, size: Size, geometry: Geometry) -> Logits:
    """Queries at the size of the input."""
    at = output.mixed_at or (output.masks.shape[-2], output.masks.shape[-1])
    rows, columns = (_over(cells, side, geometry) for cells, side in zip(at, size, strict=True))
    if output.mixed_at is None:
        return WholeQueries(output, rows, columns)
    return LinearLogits(MixedCells(output, at), rows, columns)


class QueryWindows:
    """The blend of overlapping windows' logits; only windows whose rows are still needed are held."""

    def __init__(self, over: Windows, first: list[HeadOutput], geometry: Geometry, blend: Blend) -> None:
        self.over, self.geometry = over, geometry
        self.size: Size = (over.x.shape[-2], over.x.shape[-1])
        self.vertical, self.horizontal = (importance(size, blend).to(over.x.device) for size in over.size)
        self.next = 0
        self.held: deque[tuple[int, int, list[Logits]]] = deque()
        self._hold(first)

    def _hold(self, row: list[HeadOutput]) -> None:
        queries = [queries_over(each, self.over.size, self.geometry) for each in row if isinstance(each, Queries)]
        self.held.append((*self.over.rows[self.next], queries))
        self.next += 1

    def strip(self, first: int, last: int) -> Tensor:
        while self.held and self.held[0][1] <= first:
            self.held.popleft()
        while self.next < len(self.over.rows) and self.over.rows[self.next][0] < last:
            self._hold(self.over.infer_row())
        total, covered = None, torch.zeros(last - first, self.size[1], device=self.over.x.device)
        for top, bottom, row in self.held:
            begin, end = max(top, first), min(bottom, last)
            for logits, (left, right) in zip(row, self.over.columns, strict=True):
                place = (..., slice(begin - first, end - first), slice(left, right))
                found = logits.strip(begin - top, end - top)
                if total is None:
                    total = found.new_zeros(*found.shape[:2], *covered.shape)
                share = self.vertical[begin - top : end - top, None] * self.horizontal
                total[place] += found * share
                covered[place[1:]] += share
        assert total is not None  # every row is in a window
        return total / covered


class QueryLogits:
    """Logits at the input's size, resized to the output's."""

    def __init__(self, source: Logits, output: Size, flip: bool, align_corners: bool) -> None:
        self.source, self.size, self.flip, self.align_corners = source, output, flip, align_corners
        self.vertical = bilinear(source.size[0], output[0], align_corners)

    def strip(self, top: int, bottom: int) -> Tensor:
        local = self.vertical[top:bottom]
        first, last = local.span
        found = self.source.strip(first, last)
        used, matrix = local.matrix(found)
        strip = matrix @ found.index_select(2, used - first)
        return resize(strip.flip(-1) if self.flip else strip, (bottom - top, self.size[1]), self.align_corners)
