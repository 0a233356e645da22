"""MobileNetV3-Large (Howard et al. 2019, 1905.02244), dilated, as torchvision's segmentation networks have it.

timm's has another epsilon in its BatchNorm, so its ImageNet weights do not fit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from zoo_seg.backbones.registry import register_backbone
from zoo_seg.backbones.staged import StagedBackbone, create_with_timm_names
from zoo_seg.errors import OptionError
from zoo_seg.keymap import KeyMap


def _conv_norm(
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    act: type[nn.Module] | None = nn.Hardswish,
) -> nn.Sequential:
    padding = (kernel - 1) // 2 * dilation
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)
    norm = nn.BatchNorm2d(out_channels, eps=0.001, momentum=0.01)
    make: Any = act
    return nn.Sequential(conv, norm, *([make(inplace=True)] if act else []))


class SqueezeExcitation(nn.Module):
    """Every channel times a factor that the means of all channels tell; (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = (channels // 4 + 4) // 8 * 8  # the nearest multiple of 8 that is not a tenth below
        squeezed += 8 if squeezed < 0.9 * (channels // 4) else 0
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.act = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))
        return out


class InvertedResidual(nn.Module):
    """1x1 expanding, depthwise, squeezing where asked for, and 1x1 projecting.

    (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride); the input is added where the shape is the same.
    """

    def __init__(
        self,
        in_channels: int,
        kernel: int,
        wide: int,
        out_channels: int,
        squeezes: bool,
        act: type[nn.Module],
        stride: int,
        dilation: int,
    ) -> None:
        super().__init__()
        self.adds_input = in_channels == out_channels and stride == 1
        layers: list[nn.Module] = [] if wide == in_channels else [_conv_norm(in_channels, wide, 1, act=act)]
        layers.append(_conv_norm(wide, wide, kernel, stride=stride, dilation=dilation, groups=wide, act=act))
        if squeezes:
            layers.append(SqueezeExcitation(wide))
        self.block = nn.Sequential(*layers, _conv_norm(wide, out_channels, 1, act=None))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x)
        return y + x if self.adds_input else y


# Kernel, channels inside and behind, squeezing, activation, stride and dilation of a block (table 1).
_RE, _HS = nn.ReLU, nn.Hardswish
_BLOCKS: tuple[tuple[int, int, int, bool, type[nn.Module], int, int], ...] = (
    (3, 16, 16, False, _RE, 1, 1),
    (3, 64, 24, False, _RE, 2, 1),
    (3, 72, 24, False, _RE, 1, 1),
    (5, 72, 40, True, _RE, 2, 1),
    (5, 120, 40, True, _RE, 1, 1),
    (5, 120, 40, True, _RE, 1, 1),
    (3, 240, 80, False, _HS, 2, 1),
    (3, 200, 80, False, _HS, 1, 1),
    (3, 184, 80, False, _HS, 1, 1),
    (3, 184, 80, False, _HS, 1, 1),
    (3, 480, 112, True, _HS, 1, 1),
    (3, 672, 112, True, _HS, 1, 1),
    (5, 672, 160, True, _HS, 1, 2),
    (5, 960, 160, True, _HS, 1, 2),
    (5, 960, 160, True, _HS, 1, 2),
)


class MobileNetV3(StagedBackbone):
    """(N, in_chans, H, W) -> up to four feature maps, at strides 2, 4, 8 and 16.

    Those of strides 4 and 8 are what the first block of that stride returns: the maps that LR-ASPP and the auxiliary
    head of DeepLabV3 read.

    Args:
        output_stride: of the last map: 16, which None is.
        in_chans: channels of the image.
        levels: how many of the last maps to return; None is all four.

    Raises:
        OptionError: an option has a value that is not allowed.
    """

    def __init__(self, *, output_stride: int | None = None, in_chans: int = 3, levels: int | None = None) -> None:
        super().__init__((16, 24, 40, 960), (2, 4, 8, 16), levels)
        if output_stride not in (None, 16):
            raise OptionError(f"MobileNetV3's output stride is {output_stride}; expected 16, or nothing")
        blocks: list[nn.Module] = [_conv_norm(in_chans, 16, 3, stride=2)]
        width = 16
        for kernel, wide, out, squeezes, act, stride, dilation in _BLOCKS:
            blocks.append(InvertedResidual(width, kernel, wide, out, squeezes, act, stride, dilation))
            width = out
        self.blocks = nn.Sequential(*blocks, _conv_norm(width, 960, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def chain(self) -> list[list[nn.Module]]:
        blocks = list(self.blocks)
        return [blocks[:1], blocks[1:3], blocks[3:5], blocks[5:]]


_NAME = "mobilenetv3_large"
_ENDS = tuple((f"{number}.{part}.", f"blocks.{number}.{part}.") for number in (0, len(_BLOCKS) + 1) for part in (0, 1))
_KEYS = KeyMap((*_ENDS, ("{}.block.", "blocks.{}.block.")))
register_backbone(_NAME, partial(create_with_timm_names, _NAME, MobileNetV3), key_maps={"torchvision": _KEYS})
