"""A convolution over feature maps of several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.errors import OptionError
from zoo_seg.layers.enlarged import convolve_enlarged
from zoo_seg.layers.resample import resize


class FusedConv(nn.Conv2d):
    """A 1x1 or 3x3 convolution over maps that are enlarged to the finest and concatenated, without doing either.

    It is linear in each map, and so is the enlarging: a 1x1 convolution is applied before it, a 3x3 convolution's nine
    taps on the coarser maps as well (`layers.enlarged`). The same sum, with a fraction of the
    multiplications. The weight stays whole, (out_channels, sum(in_channels), k, k).

    Args:
        in_channels: of the maps, finest first.
        out_channels: of the output, which is as large as the finest map.
        kernel_size: 1 or 3.
        align_corners: of the enlarging.

    Raises:
        OptionError: the kernel has another size.
    """

    direct = 2
    """How many of the finest maps a 3x3 convolution reads as they are: taps on larger ones would save nothing."""

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, kernel_size: int, *, align_corners: bool = False
    ) -> None:
        if kernel_size not in (1, 3):
            raise OptionError(f"a convolution over several feature maps is {kernel_size} wide; expected 1 or 3")
        super().__init__(sum(in_channels), out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.widths, self.align_corners = list(in_channels), align_corners

    def forward(self, features: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        size = (features[0].shape[-2], features[0].shape[-1])
        parts = torch.split(self.weight, self.widths, dim=1)
        if self.kernel_size == (1, 1):
            total = F.conv2d(features[0], parts[0], self.bias)
            for x, part in zip(features[1:], parts[1:], strict=True):
                total = total.add_(resize(F.conv2d(x, part), size, self.align_corners))
            return total
        finest = torch.cat([resize(x, size, self.align_corners) for x in features[: self.direct]], dim=1)
        total = F.conv2d(finest, torch.cat(parts[: self.direct], dim=1), self.bias, padding=1)
        coarser = [part.transpose(0, 1) for part in parts[self.direct :]]
        if coarser:
            total.add_(convolve_enlarged(coarser, features[self.direct :], size, self.align_corners))
        return total


class FusedConvNormAct(nn.Module):
    """`FusedConv`, BatchNorm and ReLU; maps, finest first -> (N, out_channels, h, w) at the size of the finest."""

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, kernel_size: int, *, align_corners: bool = False
    ) -> None:
        super().__init__()
        self.conv = FusedConv(in_channels, out_channels, kernel_size, align_corners=align_corners)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        out: Tensor = self.act(self.norm(self.conv(features)))
        return out
