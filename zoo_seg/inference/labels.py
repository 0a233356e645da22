"""From logits to class ids, without ever holding the logits at full size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from zoo_seg.inference.augmented import LinearLogits, Size, WholeCells
from zoo_seg.inference.taps import Taps, bilinear

_BLOCK = 1 << 20
"""Logits that the CPU blends at a time (4 MB, so that they stay in its cache)."""
_STRIP = 1 << 26
"""Logits that an accelerator holds at a time (256 MB)."""


def id_type(classes: int) -> torch.dtype:
    """The smallest type of tensors that holds every class id."""
    return torch.uint8 if classes <= 256 else torch.int16


def class_map(logits: Tensor, sizes: Sequence[Size], align_corners: bool = False) -> Tensor:
    """The winning class of each pixel after the logits were resized to each size in turn.

    Args:
        logits: (N, C, h, w).
        sizes: the (height, width) of every bilinear resize, the last one the result's; ssseg has
            one, mmseg two.
        align_corners: of the resizes.

    Returns:
        (N, H, W) of class ids: uint8, or int16 beyond 256 classes.
    """
    first, *others = sizes
    rows, columns = (bilinear(logits.shape[2 + axis], first[axis], align_corners) for axis in (0, 1))
    for size in others:
        rows, columns = rows.resized(size[0], align_corners), columns.resized(size[1], align_corners)
    parts = [ids for _, ids in winners(LinearLogits(WholeCells(logits), rows, columns))]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def winners(logits: LinearLogits) -> Iterator[tuple[int, Tensor]]:
    """(first row, ids (N, rows, W)) from top to bottom, as `class_map` gives them.

    Until the next ones are asked for, the logits' strips of these rows may be.
    """
    on_cpu = logits.cells.like.device.type == "cpu"
    return _where_cells_differ(logits) if on_cpu else _in_strips(logits)


def _in_strips(logits: LinearLogits) -> Iterator[tuple[int, Tensor]]:
    """(first row, ids (N, rows, W)) of strip after strip."""
    (height, width), top, step = logits.size, 0, 1
    while top < height:
        strip = logits.strip(top, min(top + step, height))
        yield top, strip.argmax(1).to(id_type(strip.shape[1]))
        top += step
        step = max(_STRIP // (strip.shape[0] * strip.shape[1] * width), 1)


def _where_cells_differ(logits: LinearLogits) -> Iterator[tuple[int, Tensor]]:
    """As `_in_strips`, but blend only the pixels whose cells have different winners.

    A class that wins in all cells which a pixel is mixed from wins in the mixture as well, whatever the weights.
    """
    height = logits.cells.height
    passes = torch.stack([logits.rows.cells[:, 0] // height, logits.rows.cells[:, -1] // height], dim=1)
    top = 0
    for size in torch.unique_consecutive(passes, dim=0, return_counts=True)[1].tolist():
        rows = logits.rows[top : top + size]  # which need the same rows of windows
        first, last = rows.span
        cells = logits.cells.rows(first, last)
        ids = torch.empty(len(cells), size, len(logits.columns), dtype=id_type(cells.shape[1]))
        for each, target in zip(cells, ids, strict=True):
            _blend(each.permute(1, 2, 0).contiguous(), Taps(rows.cells - first, rows.weights), logits.columns, target)
        yield top, ids
        top += size


def _blend(cells: Tensor, rows: Taps, columns: Taps, ids: Tensor) -> None:
    """The ids (H, W) of cells (h, w, C). Pixels of the same rows of cells are worked on together."""
    classes = cells.shape[2]
    groups, sizes = torch.unique_consecutive(rows.cells, dim=0, return_counts=True)
    row_weights, column_weights = rows.weights.to(cells), columns.weights.to(cells)

    least, most = cells.argmax(2).to(torch.int16)[groups].aminmax(dim=1)  # beyond 32767 classes masks end as well
    least, most = least[:, columns.cells].amin(2), most[:, columns.cells].amax(2)  # around every pixel of a group
    ids.copy_(least.repeat_interleave(sizes, dim=0))

    taps = (columns.weights > 0).sum(1)
    alike = [(taps == count, count) for count in torch.unique(taps).tolist()]  # columns outside of overlaps have fewer
    top = 0
    for group, size, differ in zip(groups, sizes.tolist(), least != most, strict=True):
        group = group.unique_consecutive()
        weights, near = row_weights[top : top + size, : len(group)], cells.index_select(0, group)
        for some, count in alike:
            for chosen in (differ & some).nonzero()[:, 0].split(max(_BLOCK // (size * classes), 1)):
                around, shares = columns.cells[chosen], column_weights[chosen, :, None]
                across = near.index_select(1, around[:, 0]).mul_(shares[:, 0])
                for tap in range(1, count):
                    across.addcmul_(near.index_select(1, around[:, tap]), shares[:, tap])
                blended = (weights @ across.flatten(1)).view(size, len(chosen), classes)
                ids[top : top + size, chosen] = blended.argmax(2).to(ids.dtype)
        top += size
