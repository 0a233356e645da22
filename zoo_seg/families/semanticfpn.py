"""Semantic FPN: a feature pyramid, summed at stride 4. Kirillov et al., https://arxiv.org/abs/1901.02446

The two projects that published weights build different necks: SSSegmentation's convolutions carry
BatchNorm and ReLU (`neck="conv_norm_act"`), MMSegmentation's only a bias (`neck="conv"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from zoo_seg.families.registry import Family, Heads, Shapes, read_width, register_family
from zoo_seg.keymap import KeyMap
from zoo_seg.layers.blocks import ConvNormAct
from zoo_seg.layers.resample import resize

Neck = Literal["conv_norm_act", "conv"]


def _neck_conv(neck: Neck, in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    if neck == "conv":
        return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    return ConvNormAct(in_channels, out_channels, kernel_size)


class FeaturePyramid(nn.Module):
    """Backbone maps, finest first -> as many maps of `channels`, each with what the coarser ones know."""

    def __init__(self, in_channels: Sequence[int], channels: int, neck: Neck) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_neck_conv(neck, width, channels, 1) for width in in_channels)
        self.output = nn.ModuleList(_neck_conv(neck, channels, channels, 3) for _ in in_channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps = [conv(x) for conv, x in zip(self.lateral, features, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + F.interpolate(maps[i], size=maps[i - 1].shape[-2:], mode="nearest")
        return [conv(x) for conv, x in zip(self.output, maps, strict=True)]


class ScaleHead(nn.Module):
    """Level i of the pyramid: max(1, i) 3x3 convolutions, for i >= 1 each followed by a bilinear x2."""

    def __init__(self, level: int, in_channels: int, channels: int, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.upsample = level > 0
        self.convs = nn.ModuleList(
            ConvNormAct(in_channels if i == 0 else channels, channels, 3) for i in range(max(1, level))
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = conv(x)
            if self.upsample:
                x = resize(x, (2 * x.shape[-2], 2 * x.shape[-1]), self.align_corners)
        return x


class SemanticFPNHead(nn.Module):
    """Backbone maps, finest first -> logits (N, num_classes, h, w) at the stride of the finest map.

    Args:
        in_channels: channels of the backbone's maps (strides 4, 8, 16 and 32 in the published networks).
        num_classes: classes of the logits.
        channels: width of the scale heads; the pyramid is twice as wide.
        neck: `"conv_norm_act"` (SSSegmentation) or `"conv"` (MMSegmentation).
        align_corners: of the resizes.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 128,
        neck: Neck = "conv_norm_act",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.neck = FeaturePyramid(in_channels, 2 * channels, neck)
        self.scale_heads = nn.ModuleList(
            ScaleHead(i, 2 * channels, channels, align_corners) for i in range(len(in_channels))
        )
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        maps = self.neck(features)
        total = self.scale_heads[0](maps[0])
        for head, x in zip(self.scale_heads[1:], maps[1:], strict=True):
            total = total + resize(head(x), total.shape[-2:], self.align_corners)
        logits: Tensor = self.classifier(self.dropout(total))
        return logits


@dataclass(frozen=True)
class SemanticFPNOptions:
    """See `SemanticFPNHead`."""

    channels: int = 128
    neck: Neck = "conv_norm_act"


def _build(channels: Sequence[int], num_classes: int, options: SemanticFPNOptions, *, align_corners: bool) -> Heads:
    return Heads(
        SemanticFPNHead(
            channels, num_classes, channels=options.channels, neck=options.neck, align_corners=align_corners
        )
    )


def _ssseg(options: SemanticFPNOptions) -> KeyMap:
    return KeyMap(
        (
            ("fpn_neck.lateral_convs.{}.0.", "head.neck.lateral.{}.conv."),
            ("fpn_neck.lateral_convs.{}.1.", "head.neck.lateral.{}.norm."),
            ("fpn_neck.fpn_convs.{}.0.", "head.neck.output.{}.conv."),
            ("fpn_neck.fpn_convs.{}.1.", "head.neck.output.{}.norm."),
            # Every second item of a scale head is an upsampling without parameters.
            *((f"scale_heads.{{}}.{2 * i}.0.", f"head.scale_heads.{{}}.convs.{i}.conv.") for i in range(3)),
            *((f"scale_heads.{{}}.{2 * i}.1.", f"head.scale_heads.{{}}.convs.{i}.norm.") for i in range(3)),
            ("decoder.1.", "head.classifier."),
        )
    )


def _mmseg(options: SemanticFPNOptions) -> KeyMap:
    scale = "decode_head.scale_heads.{}"
    return KeyMap(
        (
            ("neck.lateral_convs.{}.conv.", "head.neck.lateral.{}."),
            ("neck.fpn_convs.{}.conv.", "head.neck.output.{}."),
            *((f"{scale}.{2 * i}.conv.", f"head.scale_heads.{{}}.convs.{i}.conv.") for i in range(3)),
            *((f"{scale}.{2 * i}.bn.", f"head.scale_heads.{{}}.convs.{i}.norm.") for i in range(3)),
            ("decode_head.conv_seg.", "head.classifier."),
        )
    )


def _read_options(shapes: Shapes) -> dict[str, Any]:
    return {**read_width(shapes), "neck": "conv" if "head.neck.lateral.0.bias" in shapes else "conv_norm_act"}


FAMILY = register_family(
    Family(
        name="semanticfpn",
        title="Semantic FPN",
        paper="https://arxiv.org/abs/1901.02446",
        options=SemanticFPNOptions,
        build=_build,
        levels=4,
        key_maps={"ssseg": _ssseg, "mmseg": _mmseg},
        read_options=_read_options,
    )
)
