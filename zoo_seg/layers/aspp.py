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

    The paper's 3x3 convolution reads them as one map; it is linear in each, so its weight is kept in two parts. What
    the mean adds through `taps` is the same everywhere but beside the border, beyond which taps read zero.

    Args:
        in_channels: channels of the input.
        channels: width of every branch and of the output.
        dilations: of the branches; one of 1 is a 1x1 convolution, others are 3x3.
        separable: the 3x3 branches are depthwise separable.
    """

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int], *, separable: bool = False) -> None:
        super().__init__()
        wide = SeparableConvNormAct if separable else partial(ConvNormAct, kernel_size=3)
        self.branches = nn.ModuleList(
            ConvNormAct(in_channels, channels, 1) if each == 1 else wide(in_channels, channels, dilation=each)
            for each in dilations
        )
        self.pool = ConvNormAct(in_channels, channels, 1)
        self.bottleneck = nn.Conv2d(len(dilations) * channels, channels, 3, padding=1, bias=False)
        self.taps = nn.ConvTranspose2d(channels, channels, 3, stride=3, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)
        bound = (9 * (len(dilations) + 1) * channels) ** -0.5  # torch's default for the undivided convolution
        for part in (self.bottleneck, self.taps):
            nn.init.uniform_(part.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.taps(self.pool(x.mean((2, 3), keepdim=True)))  # (N, channels, 3, 3)
        rows, columns = (tap_matrix(1, side, x).flatten(1) for side in x.shape[-2:])
        total = self.bottleneck(torch.cat([branch(x) for branch in self.branches], dim=1))
        out: Tensor = self.act(self.norm(total.add_(rows @ mean @ columns.T)))
        return out
