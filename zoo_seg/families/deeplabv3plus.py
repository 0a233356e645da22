"""DeepLabV3+: separable pyramid pooling, refined by the finest feature map.

Chen et al., https://arxiv.org/abs/1802.02611
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo_seg.families.deeplabv3 import MMSEG_ASPP, SSSEG_ASPP, part_bottleneck
from zoo_seg.families.fcn import MMSEG_AUX, SSSEG_AUX, aux_head, read_widths
from zoo_seg.families.registry import Family, Heads, Shapes, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.aspp import ASPP
from zoo_seg.layers.blocks import ConvNormAct, SeparableConvNormAct
from zoo_seg.layers.resample import resize


class DeepLabV3PlusHead(nn.Module):
    """Backbone feature maps, finest first -> logits (N, num_classes, h, w) at the stride of the finest map.

    Args:
        in_channels: channels of the backbone's feature maps; the first and the last one are read.
        num_classes: classes of the logits.
        channels: width of the pyramid's branches and of the decoder.
        shortcut_channels: to which the finest map is narrowed.
        dilations: of the branches.
        align_corners: of the resize to the finest map.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        shortcut_channels: int = 48,
        dilations: Sequence[int] = (1, 12, 24, 36),
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.aspp = ASPP(in_channels[-1], channels, dilations, separable=True)
        self.shortcut = ConvNormAct(in_channels[0], shortcut_channels, 1)
        self.convs = nn.Sequential(
            SeparableConvNormAct(channels + shortcut_channels, channels), SeparableConvNormAct(channels, channels)
        )
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        fine = self.shortcut(features[0])
        coarse = resize(self.aspp(features[-1]), fine.shape[-2:], self.align_corners)
        logits: Tensor = self.classifier(self.dropout(self.convs(torch.cat([coarse, fine], dim=1))))
        return logits


@dataclass(frozen=True)
class DeepLabV3PlusOptions:
    """See `DeepLabV3PlusHead`; the dilations are those of output stride 8, half of them (1, 6, 12, 18) are for 16.

    `aux_channels` is the width of the auxiliary head, None that of the head.
    """

    channels: int = 512
    aux_channels: int | None = None
    shortcut_channels: int = 48
    dilations: tuple[int, ...] = (1, 12, 24, 36)


def _build(channels: Sequence[int], num_classes: int, options: DeepLabV3PlusOptions, *, align_corners: bool) -> Heads:
    head = DeepLabV3PlusHead(
        channels,
        num_classes,
        channels=options.channels,
        shortcut_channels=options.shortcut_channels,
        dilations=options.dilations,
        align_corners=align_corners,
    )
    return Heads(head, [aux_head(channels, num_classes, options.aux_channels or options.channels)])


def _ssseg(options: DeepLabV3PlusOptions) -> KeyMap:
    return KeyMap(
        (
            *SSSEG_ASPP,
            ("shortcut.0.", "head.shortcut.conv."),
            ("shortcut.1.", "head.shortcut.norm."),
            ("decoder.{}.depthwise_conv.", "head.convs.{}.depthwise.conv."),
            ("decoder.{}.depthwise_bn.", "head.convs.{}.depthwise.norm."),
            ("decoder.{}.pointwise_conv.", "head.convs.{}.pointwise.conv."),
            ("decoder.{}.pointwise_bn.", "head.convs.{}.pointwise.norm."),
            ("decoder.3.", "head.classifier."),
            *SSSEG_AUX,
        ),
        part_bottleneck(pool_first=False),
    )


def _mmseg(options: DeepLabV3PlusOptions) -> KeyMap:
    return KeyMap(
        (
            *MMSEG_ASPP,
            ("decode_head.c1_bottleneck.conv.", "head.shortcut.conv."),
            ("decode_head.c1_bottleneck.bn.", "head.shortcut.norm."),
            ("decode_head.sep_bottleneck.{}.depthwise_conv.conv.", "head.convs.{}.depthwise.conv."),
            ("decode_head.sep_bottleneck.{}.depthwise_conv.bn.", "head.convs.{}.depthwise.norm."),
            ("decode_head.sep_bottleneck.{}.pointwise_conv.conv.", "head.convs.{}.pointwise.conv."),
            ("decode_head.sep_bottleneck.{}.pointwise_conv.bn.", "head.convs.{}.pointwise.norm."),
            ("decode_head.conv_seg.", "head.classifier."),
            *MMSEG_AUX,
        ),
        part_bottleneck(pool_first=True),
    )


def _read_options(shapes: Shapes) -> dict[str, Any]:
    shortcut = shapes.get("head.shortcut.conv.weight", ())
    found = {"shortcut_channels": shortcut[0]} if len(shortcut) == 4 else {}
    return {**read_widths(shapes), **found}


FAMILY = register_family(
    Family(
        name="deeplabv3plus",
        title="DeepLabV3+",
        paper="https://arxiv.org/abs/1802.02611",
        options=DeepLabV3PlusOptions,
        build=_build,
        levels=4,
        key_maps={"ssseg": _ssseg, "mmseg": _mmseg},
        read_options=_read_options,
    )
)
