"""Pyramid pooling (Zhao et al. 2016, 1612.01105)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo_seg.layers.blocks import ConvNormAct
from zoo_seg.layers.enlarged import Taps, convolve_enlarged, init_parts, weights_of
from zoo_seg.layers.resample import pooling_matrix

POOL_SIZES = (1, 2, 3, 6)


class PyramidPooling(nn.Module):
    """A map and its means over 1, 2x2, 3x3 and 6x6 cells, mixed: (N, in_channels, H, W) -> (N, channels, H, W).

    The paper's bottleneck is a 3x3 convolution over [x, up(p1), up(p2), up(p3), up(p6)]. Its weight is kept in parts:
    `bottleneck` for x and `taps` for the pooled parts, see `layers.enlarged`. Half of the multiplications vanish, the
    sum stays the same.

    Args:
        in_channels: channels of the map.
        channels: width of the pooled branches and of the bottleneck.
        align_corners: of the resize that enlarges the pooled parts.
    """

    def __init__(self, in_channels: int, channels: int, align_corners: bool = False) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList(ConvNormAct(in_channels, channels, 1) for _ in POOL_SIZES)
        self.bottleneck = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        taps = [Taps(channels, channels) for _ in POOL_SIZES]
        self.taps = nn.ModuleList(taps)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        init_parts(self.bottleneck, taps)

    def pool(self, x: Tensor) -> Tensor:
        """The block itself, under a name for those who derive from it."""
        size = (x.shape[-2], x.shape[-1])
        pooled = convolve_enlarged(weights_of(self.taps), self._branch_outputs(x), size, self.align_corners)
        out: Tensor = self.act(self.norm(self.bottleneck(x).add_(pooled)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)

    def _branch_outputs(self, x: Tensor) -> list[Tensor]:
        """The pooled branches before they are enlarged: (N, channels, s, s) for each pool size s."""
        count, channels, height, width = x.shape
        rows = torch.cat([pooling_matrix(height, size, x) for size in POOL_SIZES])
        strips = (rows @ x.permute(0, 2, 3, 1).flatten(2)).view(count, -1, width, channels)
        parts = torch.split(strips, list(POOL_SIZES), dim=1)
        pooled = [pooling_matrix(width, size, x) @ strip for size, strip in zip(POOL_SIZES, parts, strict=True)]
        return [branch(cells.permute(0, 3, 1, 2)) for branch, cells in zip(self.branches, pooled, strict=True)]
