"""From logits to class ids, without ever holding the logits at full size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_seg.networks.resample import bilinear_matrix

Size = tuple[int, int]

_STRIP_VALUES = 1 << 23
"""Logits held at a time (32 MB in float32)."""


def class_map(logits: Tensor, sizes: Sequence[Size]) -> Tensor:
    """The winning class of each pixel after the logits were resized to each size in turn.

    A bilinear resize mixes rows and columns apart, so a strip of the result needs a few rows only.

    Args:
        logits: (N, C, h, w).
        sizes: the (height, width) of every bilinear resize, the last one the result's; ssseg has
            one, mmseg two.

    Returns:
        (N, H, W) of class ids: uint8, or int32 beyond 256 classes.
    """
    count, classes = logits.shape[:2]
    height, width = sizes[-1]
    logits = logits.float()
    rows = torch.eye(logits.shape[2], device=logits.device)
    for size in sizes:
        rows = bilinear_matrix(rows.shape[0], size[0], logits) @ rows
    result = torch.empty(
        count, height, width, dtype=torch.uint8 if classes <= 256 else torch.int32, device=logits.device
    )
    step = max(_STRIP_VALUES // (count * classes * width), 1)
    for top in range(0, height, step):
        strip_rows = rows[top : top + step]
        used = strip_rows.any(dim=0).nonzero()
        first, last = int(used[0]), int(used[-1]) + 1
        strip = strip_rows[:, first:last] @ logits[:, :, first:last]
        for size in sizes:
            strip = F.interpolate(strip, size=(strip.shape[2], size[1]), mode="bilinear", align_corners=False)
        result[:, top : top + step] = strip.argmax(1)
    return result
