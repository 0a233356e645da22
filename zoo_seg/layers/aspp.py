"""Atrous spatial pyramid pooling (Chen et al. 2017, 1706.05587)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from zoo_seg.layers.blocks import ConvNormAct, SeparableConvNormAct
from zoo_seg.layers.resample import tap_matrix


class ASPP(nn.Module):
    """Convolutions of several dilations and the mean of the map, side by side: (N, C, H, W) -> (N, channels, H, W).

    One convolution reads them as one map; it is linear in each, so its weight is kept in two parts. What the mean adds
    through `taps` is the same everywhere, but for a 3x3 one beside the border, beyond which taps read zero.

    Args:
        in_channels: channels of the input.
        channels: width of every branch and of the output.
        dilations: of the branches; one of 1 is a 1x1 convolution, others are 3x3.
        separable: the 3x3 branches are depthwise separable.
        kernel_size: of the convolution that reads the branches, 3 or 1.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        dilations: Sequence[int],
        *,
        separable: bool = False,
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        wide = SeparableConvNormAct if separable else partial(ConvNormAct, kernel_size=3)
        self.branches = nn.ModuleList(
            ConvNormAct(in_channels, channels, 1) if each == 1 else wide(in_channels, channels, dilation=each)
            for each in dilations
        )
        self.pool = ConvNormAct(in_channels, channels, 1)
        read = len(dilations) * channels
        self.bottleneck = nn.Conv2d(read, channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.taps = nn.ConvTranspose2d(channels, channels, kernel_size, stride=kernel_size, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        bound = kernel_size**-1 * (read + channels) ** -0.5  # torch's default for the undivided convolution
        for part in (self.bottleneck, self.taps):
            nn.init.uniform_(part.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.taps(self.pool(x.mean((2, 3), keepdim=True)))  # (N, channels, kernel, kernel)
        if self.taps.kernel_size != (1, 1):
            rows, columns = (tap_matrix(1, side, x).flatten(1) for side in x.shape[-2:])
            mean = rows @ mean @ columns.T
        total = self.bottleneck(torch.cat([branch(x) for branch in self.branches], dim=1))
        out: Tensor = self.act(self.norm(total.add_(mean)))
        return out
