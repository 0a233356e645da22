"""timm's window attention with sizes that torch.export can follow.

timm pads to whole windows by `(7 - H % 7) % 7`, and cuts and joins windows by `H // 7`. With symbols for H and W each
block nests these once more, and after ten minutes the first stage is not yet traced. Counted in whole windows, as here,
Swin-T takes seconds.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def count_in_windows(network: nn.Module) -> None:
    """Give the Swin blocks of a network, which is changed, the same attention in other words."""
    swin = sys.modules.get("timm.models.swin_transformer")
    for module in network.modules():
        if swin is not None and type(module) is swin.SwinTransformerBlock and module.dynamic_mask:
            module.__dict__["_attn"] = partial(_attend, module)


def _attend(block: Any, x: Tensor) -> Tensor:
    """`SwinTransformerBlock._attn`: (N, H, W, C) -> the same shape."""
    n, height, width, channels = x.shape
    (high, wide), (down, right) = block.window_size, block.shift_size
    rows, columns = (height + high - 1) // high, (width + wide - 1) // wide
    shifted = bool(down or right)
    if shifted:
        x = x.roll((-down, -right), (1, 2))
    x = F.pad(x, (0, 0, 0, columns * wide - width, 0, rows * high - height))
    x = _copied(x.view(n, rows, high, columns, wide, channels).transpose(2, 3))
    windows = x.view(-1, high * wide, channels)
    mask = None
    if shifted:
        region = 3 * _part(rows, high, down)[:, None] + _part(columns, wide, right)
        region = _copied(region.view(rows, high, columns, wide).transpose(1, 2)).view(-1, high * wide)
        mask = -100.0 * (region[:, None] != region[:, :, None]).to(x.dtype)
    windows = block.attn(windows, mask=mask)
    x = _copied(windows.view(n, rows, columns, high, wide, channels).transpose(2, 3))
    x = x.view(n, rows * high, columns * wide, channels)
    x = x.narrow_copy(1, 0, height).narrow_copy(2, 0, width)
    return x.roll((down, right), (1, 2)) if shifted else x


def _copied(x: Tensor) -> Tensor:
    """Always: a view where one is possible would bind the graph to sizes of several windows, or of one."""
    return x.clone(memory_format=torch.contiguous_format)


def _part(windows: int, size: int, shift: int) -> Tensor:
    """Which of three parts a place along one side is in; pixels of two parts do not see each other."""
    place = torch.arange(windows * size)
    return (place >= windows * size - size).long() + (place >= windows * size - shift).long()
