"""From logits to class ids, without ever holding the logits at full size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_seg.layers.resample import mixing_matrix

Size = tuple[int, int]

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
    logits = logits.float()
    rows, columns = (
        _mixing(logits.shape[2 + axis], [size[axis] for size in sizes], logits, align_corners) for axis in (0, 1)
    )
    result = torch.empty((len(logits), *sizes[-1]), dtype=id_type(logits.shape[1]), device=logits.device)
    for each, ids in zip(logits, result, strict=True):
        cells = each.permute(1, 2, 0).contiguous()
        if logits.device.type == "cpu":
            _where_cells_differ(cells, rows, columns, ids)
        else:
            _in_strips(cells, rows, columns, ids)
    return result


def _mixing(size: int, targets: Sequence[int], like: Tensor, align_corners: bool) -> Tensor:
    """(last target, size): what one axis' resizes, one after the other, take from each cell."""
    first, matrix = mixing_matrix(size, targets, like, (0, targets[-1]), align_corners)
    if matrix is None:
        return torch.eye(size, dtype=like.dtype, device=like.device)
    return F.pad(matrix, (first, size - first - matrix.shape[1]))


def _in_strips(cells: Tensor, rows: Tensor, columns: Tensor, ids: Tensor) -> None:
    """Blend strip after strip into `ids` (H, W); cells are (h, w, C)."""
    classes = cells.shape[2]
    across = torch.einsum("xw,hwc->hxc", columns, cells).flatten(1)
    step = max(_STRIP // across.shape[1], 1)
    for top in range(0, len(rows), step):
        ids[top : top + step] = (rows[top : top + step] @ across).view(-1, ids.shape[1], classes).argmax(2)


def _where_cells_differ(cells: Tensor, rows: Tensor, columns: Tensor, ids: Tensor) -> None:
    """As `_in_strips`, but blend only the pixels whose cells have different winners.

    A class that wins in all cells around a pixel wins in their blend as well, whatever the weights. The
    pixels between the same rows of cells are worked on together.
    """
    classes = cells.shape[2]
    row_start, row_weights = _support(rows)
    column_start, column_weights = _support(columns)
    group_start, group_size = torch.unique_consecutive(row_start, return_counts=True)

    winners = cells.argmax(2)[_places(group_start, row_weights.shape[1])]
    least, most = (each[:, _places(column_start, column_weights.shape[1])] for each in winners.aminmax(dim=1))
    least, most = least.amin(2), most.amax(2)  # of the cells around every pixel of a group's rows
    ids.copy_(least.repeat_interleave(group_size, dim=0))

    top = 0
    for start, size, differ in zip(group_start.tolist(), group_size.tolist(), least != most, strict=True):
        around = cells[start : start + row_weights.shape[1]]
        weights = row_weights[top : top + size]
        for chosen in differ.nonzero()[:, 0].split(max(_BLOCK // (size * classes), 1)):
            across = around[:, column_start[chosen]] * column_weights[chosen, 0, None]
            for tap in range(1, column_weights.shape[1]):
                across.addcmul_(around[:, column_start[chosen] + tap], column_weights[chosen, tap, None])
            blended = (weights @ across.flatten(1)).view(size, len(chosen), classes)
            ids[top : top + size, chosen] = blended.argmax(2).to(ids.dtype)
        top += size


def _support(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row of a banded matrix begins, and its values from there on: (n,) and (n, taps)."""
    used = matrix != 0
    first = used.int().argmax(1)
    last = matrix.shape[1] - 1 - used.flip(1).int().argmax(1)
    taps = int((last - first).max()) + 1
    start = first.clamp(max=matrix.shape[1] - taps)
    return start, matrix.gather(1, _places(start, taps))


def _places(start: Tensor, taps: int) -> Tensor:
    """(n, taps): `taps` places from each start on."""
    return start[:, None] + torch.arange(taps, device=start.device)
