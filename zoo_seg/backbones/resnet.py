"""ResNet as segmentation networks use it: dilated, with a plain or a deep stem.

He et al. 2015 (1512.03385), the stride of a bottleneck on its 3x3 convolution; the deep stem and the pooled shortcut
are those of He et al. 2018 (1812.01187), named c and d there. Parameters have timm's names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.backbones.staged import StagedBackbone, create_with_timm_names
from zoo_seg.errors import OptionError
from zoo_seg.keymap import KeyMap

DilationStyle = Literal["timm", "mmseg"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the second dilated by `second`, and a shortcut.

    (N, in_channels, H, W) -> (N, channels, H / stride, W / stride).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        downsample: nn.Module | None = None,
        *,
        second: int = 1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, second, second, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = downsample
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.act2(y)
        return out


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution, and a shortcut.

    (N, in_channels, H, W) -> (N, 4 * channels, H / stride, W / stride).
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, dilation: int, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.act3 = nn.ReLU(inplace=True)
        self.downsample = downsample
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.act3(y)
        return out


class _SameAvgPool(nn.Module):
    """The mean of 2x2 at every place, zeros beyond the right and bottom edge."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, 1)


_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Of each stage, by depth."""


class ResNet(StagedBackbone):
    """(N, in_chans, H, W) -> up to five feature maps: the stem's at stride 2, then those of the four stages.

    A stage that does not reduce, for a smaller output stride, is dilated instead; its first block only half as much
    (mmseg's `contract_dilation`, which all published networks have).

    Args:
        depth: 18, 34, 50, 101 or 152.
        deep_stem: three 3x3 convolutions in place of one 7x7.
        avg_down: shortcuts that reduce average 2x2 before their convolution, in place of its stride.
        output_stride: of the last map: 8, 16 or 32, which None is.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is all five.
        dilations: of the four stages, in place of those that the output stride asks for. A published "D32" network
            may have (1, 1, 2, 4) and still reduce in every stage.
        multi_grid: dilations of the last stage's blocks, in place of the stage's own (not factors of it).
        dilation_style: whose rule dilated stages follow where the two differ. In timm both convolutions of a
            `BasicBlock` are dilated and `avg_down` averages although nothing is reduced; mmseg and ssseg dilate the
            first convolution only and leave the shortcut alone. A `Bottleneck` without `avg_down` is the same in both.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(
        self,
        depth: int,
        *,
        deep_stem: bool = False,
        avg_down: bool = False,
        output_stride: int | None = None,
        in_chans: int = 3,
        levels: int | None = None,
        dilations: Sequence[int] | None = None,
        multi_grid: Sequence[int] | None = None,
        dilation_style: DilationStyle = "timm",
    ) -> None:
        counts, widest = _BLOCKS[depth], 512 if depth < 50 else 2048
        reached = [min(stride, output_stride or 32) for stride in (2, 4, 8, 16, 32)]
        super().__init__((64, widest // 8, widest // 4, widest // 2, widest), reached, levels)
        if output_stride not in (None, 8, 16, 32):
            raise OptionError(f"a ResNet's output stride is {output_stride}; expected 8, 16 or 32")
        _check("dilations", dilations, 4, "stage")
        _check("multi_grid", multi_grid, counts[-1], "block of the last stage")
        if dilation_style not in get_args(DilationStyle):
            raise OptionError(f"dilation_style is {dilation_style!r}; expected one of {get_args(DilationStyle)}")

        if deep_stem:
            self.conv1: nn.Module = nn.Sequential(
                nn.Conv2d(in_chans, 32, 3, 2, 1, bias=False),
                nn.BatchNorm2d(32),
                nn.ReLU(inplace=True),
                nn.Conv2d(32, 32, 3, 1, 1, bias=False),
                nn.BatchNorm2d(32),
                nn.ReLU(inplace=True),
                nn.Conv2d(32, 64, 3, 1, 1, bias=False),
            )
        else:
            self.conv1 = nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)

        wanted = dilations or [full // stride for full, stride in zip((4, 8, 16, 32), reached[1:], strict=True)]
        width = 64
        for index, (count, dilation) in enumerate(zip(counts, wanted, strict=True)):
            each = [max(dilation // 2, 1)] + [dilation] * (count - 1)
            if multi_grid is not None and index == 3:
                each = list(multi_grid)
            channels, stride = 64 << index, 1 if index == 0 else reached[index + 1] // reached[index]
            block: Callable[..., nn.Module]
            if depth < 50:
                out, block = channels, partial(BasicBlock, second=1 if dilation_style == "mmseg" else dilation)
            else:
                out, block = 4 * channels, Bottleneck
            downsample = None
            if stride > 1 or width != out:
                downsample = nn.Sequential(
                    *_shortcut_pooling(avg_down, stride, dilation, dilation_style),
                    nn.Conv2d(width, out, 1, 1 if avg_down else stride, bias=False),
                    nn.BatchNorm2d(out),
                )
            blocks = [block(width, channels, stride, each[0], downsample)]
            blocks += [block(out, channels, 1, own) for own in each[1:]]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            width = out

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def chain(self) -> list[list[nn.Module]]:
        names = (("conv1", "bn1", "act1"), ("maxpool", "layer1"), ("layer2",), ("layer3",), ("layer4",))
        return [[self.get_submodule(name) for name in stage] for stage in names]


def _check(option: str, values: Sequence[int] | None, count: int, each: str) -> None:
    if values is None:
        return
    is_list = isinstance(values, list | tuple) and len(values) == count
    if not is_list or not all(isinstance(value, int) and value > 0 for value in values):
        raise OptionError(f"{option} is {values!r}; expected {count} positive integers, one for each {each}")


def _shortcut_pooling(avg_down: bool, stride: int, dilation: int, style: DilationStyle) -> list[nn.Module]:
    if not avg_down:
        return []
    if stride > 1:
        return [nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)]
    return [_SameAvgPool() if dilation > 1 and style == "timm" else nn.Identity()]


# The deep stem is one sequence in both projects; its last BatchNorm stands alone here.
_DEEP_STEM = KeyMap((("stem.7.", "bn1."), ("stem.{}.", "conv1.{}."), ("layer{}.", "layer{}.")))
_PLAIN_STEM = KeyMap((("conv1.", "conv1."), ("bn1.", "bn1."), ("layer{}.", "layer{}.")))

for _depth in _BLOCKS:
    for _letter in ("", "c", "d"):
        _name, _map = f"resnet{_depth}{_letter}", _DEEP_STEM if _letter else _PLAIN_STEM
        _build = partial(ResNet, _depth, deep_stem=bool(_letter), avg_down=_letter == "d")
        _maps = {"mmseg": _map, "ssseg": _map} | ({} if _letter else {"torchvision": _map})
        register_backbone(_name, partial(create_with_timm_names, _name, _build), key_maps=_maps)
