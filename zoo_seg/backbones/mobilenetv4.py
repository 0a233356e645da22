"""MobileNetV4-Conv-S (Qin et al. 2024, 2404.10518). Parameters have timm's names."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.backbones.staged import StagedBackbone, create_with_timm_names
from zoo_seg.errors import OptionError


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    *,
    groups: int = 1,
    act: bool = True,
    norm: str = "bn",
) -> nn.Sequential:
    """A convolution, BatchNorm under the name `norm` and, with `act`, ReLU."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)
    modules = {"conv": conv, norm: nn.BatchNorm2d(out_channels)}
    return nn.Sequential(OrderedDict({**modules, "act": nn.ReLU(inplace=True)} if act else modules))


class UniversalInvertedBottleneck(nn.Module):
    """Depthwise, 1x1 expanding, depthwise and 1x1 projecting; a kernel of 0 leaves a depthwise convolution out.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride); the input is added where the shape is the same.
    """

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, first: int, middle: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.adds_input = in_channels == out_channels and stride == 1
        self.dw_start: nn.Module = nn.Identity()
        if first:
            own = 1 if middle else stride
            self.dw_start = _conv_norm(in_channels, in_channels, first, own, dilation, groups=in_channels, act=False)
        self.pw_exp = _conv_norm(in_channels, wide, 1)
        self.dw_mid: nn.Module = nn.Identity()
        if middle:
            self.dw_mid = _conv_norm(wide, wide, middle, stride, dilation, groups=wide)
        self.pw_proj = _conv_norm(wide, out_channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pw_proj(self.dw_mid(self.pw_exp(self.dw_start(x))))
        return y + x if self.adds_input else y


# Channels and kernel of a convolution; channels, expansion and the two depthwise kernels of a bottleneck. The first
# block of all stages but the last one has stride 2.
_STAGES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((32, 3), (32, 1)),
    ((96, 3), (64, 1)),
    ((96, 3, 5, 5), *[(96, 2, 0, 3)] * 4, (96, 4, 3, 0)),
    ((128, 6, 3, 3), (128, 4, 5, 5), (128, 4, 0, 5), (128, 3, 0, 5), *[(128, 4, 0, 3)] * 2),
    ((960, 1),),
)


class MobileNetV4(StagedBackbone):
    """MobileNetV4-Conv-S: (N, in_chans, H, W) -> up to five feature maps, at strides 2, 4, 8, 16 and 32.

    A stage that does not reduce, for a smaller output stride, dilates the depthwise convolutions behind it instead.

    Args:
        output_stride: of the last map: 2, 4, 8, 16 or 32, which None is.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is all five.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(self, *, output_stride: int | None = None, in_chans: int = 3, levels: int | None = None) -> None:
        reached = [min(stride, output_stride or 32) for stride in (2, 4, 8, 16, 32)]
        super().__init__((32, 32, 64, 96, 960), reached, levels)
        if output_stride not in (None, 2, 4, 8, 16, 32):
            raise OptionError(f"MobileNetV4's output stride is {output_stride}; expected 2, 4, 8, 16 or 32")
        self.conv_stem = nn.Conv2d(in_chans, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = nn.ReLU(inplace=True)

        width, dilation, stages = 32, 1, []
        for number, stage in enumerate(_STAGES):
            blocks: list[nn.Module] = []
            reduction = 1 if number == 4 else reached[number + 1] // reached[number]
            for out, *shape in stage:
                stride = 1 if blocks else reduction
                if len(shape) == 1:
                    blocks.append(_conv_norm(width, out, shape[0], stride, dilation, norm="bn1"))
                else:
                    expansion, first, middle = shape
                    blocks.append(UniversalInvertedBottleneck(width, out, expansion, first, middle, stride, dilation))
                if number < 4 and len(blocks) == 1:
                    dilation *= 2 // reduction
                width = out
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def chain(self) -> list[list[nn.Module]]:
        stem, blocks = [self.conv_stem, self.bn1, self.act1], self.blocks
        return [stem, [blocks[0]], [blocks[1]], [blocks[2]], [blocks[3], blocks[4]]]


_NAME = "mobilenetv4_conv_small"
register_backbone(_NAME, partial(create_with_timm_names, _NAME, MobileNetV4))
